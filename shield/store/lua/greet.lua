-- greet.lua, which is sent whole (EVAL): whether this is the server that nonces were taken from, asked by every new connection before any check. A
-- server that was restarted, or a replica that was promoted, may have lost the last writes: from here on nonces are known
-- only since now (see check.lua).
--
-- KEYS[1]  the fence of the prefix (see level.lua)
-- ARGV[1]  tests only: the instant in whole us. Empty: the server's own TIME
--
-- Returns 1 when the fence was moved, 0 when it stands.

local run = server_run()
local fence = read_fence(KEYS[1])
if fence and fence.run == run then return 0 end
-- Gone first, because that is never refused for want of memory: where there is no fence, check.lua makes a new one.
redis.call('PEXPIRE', KEYS[1], 0)
local span = fence and fence.span or 0
write_fence(KEYS[1], {since = tonumber(ARGV[1]) or server_now(), widened = 0, span = span, before = span, run = run})
return 1
