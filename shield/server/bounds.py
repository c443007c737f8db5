"""What the server accepts at most, and why that much."""

from __future__ import annotations

from typing import Final

# A body of one mebibyte in base64, which is what `[guard.size]` allows in its example, beside all other
# facts.
MAX_BODY_BYTES: Final = 2 * 1_048_576
# The loader's own bound: larger text is refused there with a better message than a bare 413.
MAX_POLICY_BODY_BYTES: Final = 1_048_576 + 1
# The contract's: enough to spread the cost of a request over many checks, few enough to answer in one go.
MAX_BATCH: Final = 256
# As many as the places a single concurrency limit may have.
MAX_LEASES: Final = 1_024

# Gateways allow a client 8 KiB for its request line and for a header field. The check request carries that
# line whole, behind a prefix or inside a field, so ours are twice as long.
MAX_LINE_BYTES: Final = 16_384
MAX_FIELD_BYTES: Final = 16_384
# A gateway copies the client's fields, up to a hundred by the defaults of Envoy and Apache, and adds its own.
MAX_HEADER_FIELDS: Final = 160

# The express lane waits for the rest of a request that is cut off by the end of a read, up to this length of head
# and body; longer ones are aiohttp's, which streams them. As much as a socket's read returns at most on plain loops,
# and thirty times a check. It bounds what MAX_CONNECTIONS can pin to 256 MB.
HOLD_BYTES: Final = 65_536
# Requests of one connection answered in one turn of the loop, a third of a millisecond. 100,000 pipelined requests
# then delay everybody else's by no more than that.
TURN_REQUESTS: Final = 64
# Answers joined into one write: the high-water mark of the transports, behind which they ask to wait.
WRITE_BYTES: Final = 65_536

# Each connection costs some 40 KB with its buffers. Gateways keep a few hundred open; this bounds what others
# could.
MAX_CONNECTIONS: Final = 4_096
# Pending connections in the kernel; Linux caps it at net.core.somaxconn, 4,096 by default.
BACKLOG: Final = 1_024
# Longer than Envoy's hour, so that it is the gateway who gives an idle connection up: a server that closes
# first races with the gateway's next request.
KEEPALIVE_S: Final = 3_630.0
# The whole of a request's body, from its head on. Callers are gateways and services nearby, not browsers.
BODY_TIMEOUT_S: Final = 10.0
# A request's head, from its first byte on; a segment lost on the way is sent again within 3 s.
HEAD_TIMEOUT_S: Final = 10.0
# How long a connection may be silent that has not been answered anything yet, or of which cannot be told whether it
# has begun a request, because aiohttp serves it: longer than a scrape every minute.
STRANGER_IDLE_S: Final = 90.0
# How long a connection may leave its answers unfetched, beyond the transport's high-water mark of 64 KiB.
STALL_S: Final = 60.0
# What is left of a body that nobody wants is read for so long, so that the answer arrives before the reset.
LINGER_S: Final = 2.0

# A request that has waited so long for its turn is not decided any more: half of what Envoy waits for an authorization
# by default (200 ms), so that its 503 still arrives. Only a loop that is far behind comes to it.
MAX_WAIT_S: Final = 0.1
# Requests that wait for a remote store's answer: what one Redis decides in some 100 ms.
MAX_WAITING: Final = 1_024
# What a shed request is told: such peaks are over in a second, or last.
SHED_RETRY_AFTER_S: Final = 1

# nginx reads all header fields of an answer into one buffer of 4 KiB by default and fails with 502 beyond it.
# RateLimit fields of twenty limits take 1.5 KiB of it.
MAX_HANDLE_CHARS: Final = 2_048
# What a caller's request id may be to be shown in logs and header fields; longer ones are replaced.
MAX_REQUEST_ID_CHARS: Final = 128

# What subjects in security events are hashed with, where the policy names no key: as long as BLAKE2b's output there.
EVENTS_KEY_BYTES: Final = 32

# In-flight requests get so long to finish after SIGTERM: a check takes milliseconds, a slow body
# BODY_TIMEOUT_S.
DRAIN_GRACE_S: Final = 10.0

# Each caller token costs a comparison per request, all of them, so that the time tells nothing.
MAX_TOKENS: Final = 64
MAX_TOKEN_FILE_BYTES: Final = 65_536
MAX_SECRET_FILE_BYTES: Final = 4_096
MIN_SECRET_BYTES: Final = 16

# Lines about refusals: enough to see what is going on, not enough for an attack to fill a disk (about 250
# bytes each).
REFUSAL_LINES: Final = "10/s"
REFUSAL_LINES_BURST: Final = 50

# Decisions held back before a write, and the size at which a trace ends: three million decisions of 300
# bytes.
TRACE_BUFFER_BYTES: Final = 65_536
TRACE_MAX_BYTES: Final = 1_073_741_824

# How often what may wait is looked after: what a crash may lose of a trace, how late a lost store is logged.
TICK_S: Final = 1.0

# What callers sent before the listeners closed is on its way through the kernel for so long.
SETTLE_S: Final = 0.02
# After the grace: what an answer that is being written gets to reach the kernel.
CLOSE_S: Final = 0.2

# ---- several workers ---------------------------------------------------------------------------------------

# Each takes some 50 MB and a core; machines with more cores than this want several servers anyway.
MAX_WORKERS: Final = 256
# The longest message holds a policy, of MAX_POLICY_BODY_BYTES and little else, or counts for each limit of one.
MAX_MESSAGE_BYTES: Final = 16 * 1_048_576
# For a worker that does not read: a policy or two. The kernel's buffer takes 200 KB before any of it.
MAX_UNSENT_BYTES: Final = 4 * MAX_MESSAGE_BYTES
# A start takes a second on an idle machine, most of it imports, and one more where a store does not answer.
WORKER_READY_S: Final = 30.0
# Attempts of each worker before the server has served anything: what keeps ending then will not mend itself.
MAX_FIRST_STARTS: Final = 3
# Pause before a dead worker's successor: doubled with each death, with jitter so that they do not march in
# step, and as in the beginning once a worker has lived for RESTART_STEADY_S.
RESTART_FIRST_S: Final = 0.1
RESTART_MAX_S: Final = 15.0
RESTART_STEADY_S: Final = 30.0
# A worker says every TICK_S that it lives. After so many without a word its neighbours serve its listeners too,
# and then it is ended: a decision takes a millisecond, a large policy a few seconds to read.
QUIET_TICKS: Final = 3
SILENT_TICKS: Final = 30
# What a worker may take to read a policy and make room for it, or to put it in force.
CHANGE_S: Final = 15.0
# What a scrape waits for a worker's counts; then those it sent last are shown.
COUNT_S: Final = 1.0
# Beyond the grace of a drain, until a worker that has not ended is killed; and for the exit of one that has
# said its last word.
WORKER_END_S: Final = 5.0
# A worker whose supervisor has gone ends at once, or the kernel sees to it after so long.
ORPHAN_S: Final = 5
