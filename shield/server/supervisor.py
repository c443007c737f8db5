"""The server of several workers: a process that decides nothing. It binds the listeners, keeps workers running,
answers operators for all of them, and sees to it that they all decide by the same policy.

A policy is replaced in two steps. Each worker reads the very text that the supervisor has read and makes room for
it; only when all have is it put in force. A worker that does not answer is ended, and its successor starts with
what is in force then. One that was starting meanwhile is told what has changed before it decides anything.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, TextIO

from shield.block.file import BlockFileError
from shield.block.ledger import BlockLedger
from shield.block.lists import no_lists
from shield.errors import PolicyError, PolicyIssue
from shield.gate import open_api_keys
from shield.policy import Policy
from shield.server.admin_server import AdminServer
from shield.server.auth import CallerTokens, TokenFileError, read_token_file
from shield.server.bounds import CHANGE_S, EVENTS_KEY_BYTES, TICK_S
from shield.server.control import Abort, Certificate, Commit, Done, Prepare, Prepared, Start, Tokens
from shield.server.counts import Counts
from shield.server.crew import Crew
from shield.server.exposition import Exposition
from shield.server.logs import fault_fields, open_log
from shield.server.metrics import Metrics, no_stats
from shield.server.options import ServeOptions, read_secret
from shield.server.service import Front, PolicyChanged
from shield.server.sockets import UsageError, listen_for
from shield.server.source import PolicySource
from shield.server.startup import Console, first_policy, foreign_records, refuse_open_listeners, signals
from shield.server.worker_metrics import worker_metrics
from shield.server.worker_process import SILENT, UNABLE, WorkerProcess

if TYPE_CHECKING:
    from shield.identity.api_keys import ApiKeys

# What a shared:// store takes.
MAX_TABLE_NAME_CHARS: Final = 64


class Supervisor(Front):
    """`run` returns after a drain, or raises what keeps it from starting: StartError or PolicyError."""

    def __init__(self, options: ServeOptions, *, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> None:
        self._options = options
        refuse_open_listeners(options)
        refuse_private_store(options)
        self.source, self._policy = first_policy(options)
        self._api_keys = open_api_keys(self._policy.identity)
        metrics = Metrics(options.version, self._policy, no_stats)
        # Subjects in the events of all workers have the same hashes.
        self._key = os.urandom(EVENTS_KEY_BYTES)
        super().__init__(metrics, open_log(err, options.log_format, options.log_level), self._key)
        self.security = self.new_events(self._policy)
        self._exposition = Exposition(
            options.version, lambda: metrics.policy, self._counts, lambda: worker_metrics(self._crew.slots)
        )
        self._console = Console(options, out, self.log)
        self._secret = read_secret(options.secret_file) if options.secret_file is not None else None
        self._tokens: bytes | None = None
        self._tokens = self._read_tokens()[0] if options.token_file is not None else None
        self._tls = options.tls.context() if options.tls is not None else None
        self._closing = ExitStack()
        self._store = ""
        self._store_name = ""
        self._blocks: BlockLedger | None = None
        self._crew = Crew(options.workers, self._next_start, self._join, self.log)
        self._admin: AdminServer | None = None
        self._generation = 0
        self._changing = asyncio.Lock()
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. SIGHUP reads the policy, the tokens and the certificate again."""
        with signals(self._stop, self._reload), foreign_records(self.log):
            try:
                await self._start()
                await self._serve()
            finally:
                await self._crew.close()
                if self._admin is not None:
                    await self._admin.close()
                if self._blocks is not None:
                    await self._blocks.stop()
                self.close()
                self._closing.close()

    # ---- starting ------------------------------------------------------------------------------------------

    def _read_tokens(self) -> tuple[bytes, CallerTokens]:
        """The token file, and what it says. UsageError."""
        assert self._options.token_file is not None
        try:
            data = read_token_file(self._options.token_file)
            return data, CallerTokens.parse(data, self._options.token_file)
        except TokenFileError as error:
            raise UsageError(f"--auth-token-file {error}") from None

    async def _start(self) -> None:
        """Binds what there is to bind before it starts a worker: what is in the way is found at once."""
        options = self._options
        where = []
        for address in options.listen:
            for bound, worker in listen_for(address, options.workers):
                self._crew.listen(bound, worker)
                where.append(bound.reached_by(self._tls))
        where = list(dict.fromkeys(where))
        self._store = options.store or self._own_table(where[0])
        self._open_blocks()
        admin_where: list[str] = []
        if options.admin is not None:
            tokens = self._read_tokens()[1] if options.token_file is not None else None
            self._admin = AdminServer(self, options.admin, tokens, self._tls, callers=options.callers)
            admin_where = await self._admin.open()
        starting = asyncio.create_task(self._crew.start())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():  # it was told to end before it has begun
            await self._crew.close()
        await starting
        if self._crew.started:
            self._introduce(where, admin_where)

    def _own_table(self, where: str) -> str:
        """The table of a server that was given no store: of its address when that is always the same, else one that
        ends with it.
        """
        first = self._options.listen[0]
        if first.path or first.port:
            return default_store(where)
        from shield.store.shared import PrivateTable

        table = self._closing.enter_context(PrivateTable())
        return str(table.url)

    def _open_blocks(self) -> None:
        """The file in which this process and its workers tell each other of blocks. UsageError."""
        path = self._options.blocks
        if path is None and self._store.partition(":")[0].strip().lower() == "shared":
            from shield.store.shared import blocks_path

            path = blocks_path(self._store)
        if path is None:  # the store remembers them
            path = Path(self._closing.enter_context(TemporaryDirectory(prefix="shield-"))) / "blocks"
        try:
            self._blocks = BlockLedger(self.now_us, path)
        except BlockFileError as error:
            raise UsageError(f"--blocks: {error}") from None
        self._blocks_path = path
        self._blocks.listeners.append(self.block_said)
        self._blocks.adopt(self._policy, no_lists())
        self._blocks.start()

    def _introduce(self, where: list[str], admin_where: list[str]) -> None:
        told = [worker.ready for worker in self._crew.admitted() if worker.ready is not None]
        for warning in dict.fromkeys(warning for ready in told for warning in ready.warnings):
            self._console.say(f"warning: {warning}")
        store = told[0].store if told else self._store_name
        self._console.introduce(self._policy, store, where, admin_where)

    def _next_start(self, number: int, first: bool) -> tuple[Start, int]:
        """What the next worker of a slot is told first, and the generation that this is of."""
        options = self._options
        tls = options.tls
        start = Start(
            number=number,
            version=options.version,
            store=self._store,
            policy=self.source.written(),
            secret=self._secret,
            tokens=self._tokens,
            token_file=str(options.token_file) if options.token_file is not None else None,
            tls=None if tls is None else (str(tls.cert), str(tls.key), str(tls.client_ca) if tls.client_ca else None),
            callers=None if options.callers is None else options.callers.patterns,
            blocks=str(self._blocks_path),
            events_key=self._key,
            geo=[str(path) for path in options.geo],
            trace=f"{options.trace}.{number}" if options.trace is not None else None,
            trace_anew=first,
            log_format=options.log_format,
            log_level=options.log_level,
        )
        return start, self._generation

    async def _join(self, worker: WorkerProcess) -> None:
        """A worker that is ready decides from now on, by what is in force now."""
        assert worker.ready is not None
        self._store_name = worker.ready.store_name
        async with self._changing:
            if worker.generation != self._generation and not await self._catch_up(worker):
                worker.kill(UNABLE)
                return
            self._crew.admit(worker)
        self.log.info("worker decides", worker=worker.number, pid=worker.pid)

    async def _catch_up(self, worker: WorkerProcess) -> bool:
        asked: list[tuple[Any, ...]] = [(Prepare, self.source.written()), (Commit,)]
        if self._tokens is not None:
            asked.append((Tokens, self._tokens))
        if self._options.tls is not None:
            asked.append((Certificate,))
        for kind, *fields in asked:
            match await worker.ask(kind, *fields, within_s=CHANGE_S):
                case Prepared(_, issues) if issues:
                    return False
                case None:
                    return False
        return True

    # ---- running -------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        tasks = [asyncio.create_task(self._reloads()), asyncio.create_task(self._ticks())]
        try:
            await self._stop.wait()
            await self._drain()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()

    async def _reloads(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                await self._reload_once()
            except Exception as error:
                self.log.error("reload failed, what runs stays in force", **fault_fields(error))

    async def _reload_once(self) -> None:
        """The policy, the tokens and the certificate, each by itself: what is wrong stays as it was."""
        options = self._options
        if options.policy is None:
            self.log.info("the starter policy has no file to read again")
        else:
            try:
                source, policy = PolicySource.read(options.policy)
                await self.replace_policy(source, policy, "SIGHUP")
            except PolicyError as error:
                self.policy_refused(error, "SIGHUP")
        if options.token_file is not None:
            try:
                data, tokens = self._read_tokens()
            except UsageError as error:
                self.log.error("tokens not reloaded, the old ones stay valid", why=str(error))
            else:
                async with self._changing:
                    self._tokens = data
                    await self._tell_all(Tokens, data)
                if self._admin is not None:
                    self._admin.renew_tokens(tokens)
                self.log.info("tokens reloaded", tokens=len(tokens))
        if options.tls is not None and self._tls is not None:
            try:
                options.tls.load_into(self._tls)
            except UsageError as error:
                self.log.error("certificate not reloaded, the old one stays in use", why=str(error))
            else:
                async with self._changing:
                    await self._tell_all(Certificate)
                self.log.info("certificate reloaded")

    async def _tell_all(self, kind: Any, *fields: Any) -> None:
        """Tells every worker of a change that one cannot refuse. Who does not answer is replaced."""
        self._generation += 1
        for worker, answer in await self._ask_all(kind, *fields):
            if isinstance(answer, Done) and answer.why:
                self.log.error("not reloaded by a worker", worker=worker.number, why=answer.why)

    async def _ask_all(self, kind: Any, *fields: Any) -> list[tuple[WorkerProcess, Any]]:
        """The workers that answered, and what. The others are ended."""
        workers = self._crew.admitted()
        answers = await asyncio.gather(*(worker.ask(kind, *fields, within_s=CHANGE_S) for worker in workers))
        for worker, answer in zip(workers, answers, strict=True):
            if answer is None:
                worker.admitted = False
                worker.kill(SILENT)
        return [(worker, answer) for worker, answer in zip(workers, answers, strict=True) if answer is not None]

    # ---- for operators -------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def api_keys(self) -> ApiKeys | None:
        return self._api_keys

    @property
    def blocks(self) -> BlockLedger:
        assert self._blocks is not None, "it is opened before the admin listener"
        return self._blocks

    def now_us(self) -> int:
        return time.time_ns() // 1000

    async def replace_policy(
        self, source: PolicySource, policy: Policy, origin: str, *, expected: str | None = None
    ) -> str:
        # Once begun it is brought to its end, whoever asked may hang up: no worker must be left in between.
        return await asyncio.shield(asyncio.create_task(self._replace(source, policy, origin, expected)))

    async def _replace(self, source: PolicySource, policy: Policy, origin: str, expected: str | None) -> str:
        async with self._changing:
            previous = self._policy.fingerprint
            if expected not in (None, previous):
                raise PolicyChanged(previous)
            api_keys = open_api_keys(policy.identity)
            self.check_events(policy)
            answers = [answer for _, answer in await self._ask_all(Prepare, source.written())]
            issues = next((answer.issues for answer in answers if answer.issues), None)
            if issues is not None:
                await self._ask_all(Abort)
                raise PolicyError([PolicyIssue(path, message) for path, message in issues], str(source.path or ""))
            self.adopt_events(policy, self._policy)
            self.source, self._policy, self._api_keys = source, policy, api_keys
            self.blocks.adopt(policy, no_lists())
            self._generation += 1
            self.metrics.adopt(policy)
            await self._ask_all(Commit)
        self.policy_replaced(policy, previous, origin)
        return previous

    def readiness(self) -> dict[str, Any]:
        workers = self._crew.admitted()
        return {
            "ready": bool(workers) and self._crew.started and not self.draining,
            "draining": self.draining,
            "degraded": any(worker.degraded for worker in workers),
            "store": self._store_name,
            "workers": len(self._crew.slots),
            "workers_ready": len(workers),
        }

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        await self._crew.count()
        return self._exposition.render(accept)

    def _counts(self) -> Counts:
        total = self.metrics.counts()
        sum_of_all = Counts()
        sum_of_all.add(total)
        for slot in self._crew.slots:
            sum_of_all.add(slot.counts())
        return sum_of_all

    # ---- ending --------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Unready at once; stops accepting; lets what is in flight finish; the admin listener goes last."""
        options = self._options
        self.draining = True
        self._stop.clear()
        self.log.info("draining", grace_s=options.grace_s, delay_s=options.drain_delay_s)
        if options.drain_delay_s:
            # Balancers that poll /readyz notice in the meantime, and new connections still are served.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), options.drain_delay_s)
        await self._crew.drain(options.grace_s, self._stop)
        if self._admin is not None:
            await self._admin.close()
        self.log.info("ended")


def refuse_private_store(options: ServeOptions) -> None:
    """UsageError for a store that each worker would have for itself."""
    if options.store is not None and options.store.partition(":")[0].strip().lower() == "memory":
        raise UsageError(
            f"--store memory:// is a table of each process's own: {options.workers} workers would admit "
            f"{options.workers} times what the limits allow. Use shared://NAME, one table for all processes of "
            "this host, or redis://..., or one worker; without --store it is a shared:// table of this server's own"
        )


def default_store(where: str) -> str:
    """The table of a server that was given none: named by where it listens, so that the next server there goes on
    with what was spent.
    """
    address = where.partition("://")[2] or where.partition(":")[2]
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", address).strip("-._")
    return f"shared://{name[:MAX_TABLE_NAME_CHARS]}"
