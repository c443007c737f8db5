-- end.lua: what became of a request that owns its idempotency key: written only while it still does, and once.
--
-- KEYS     the key's record and its holder's set (see keyed.lua); the record alone where the set lies elsewhere
-- ARGV[1]  little-endian "c16c16dddd": owner, address; what to do (1 complete, 2 abandon, 3 extend); lease_us,
--          retention_us, slack_ms. 4 is 1, and is done again where its owner has kept the very same answer before
-- ARGV[2]  tests only: the instant in whole us. Empty: the server's own TIME
-- ARGV[3]  the answer to be kept, for 1 and 4
--
-- Returns an integer: 1 written; 0 the record is not the owner's any more, or was ended before; 2 there is none.

local RECORD, RECORD_BYTES, RECORD_LAYOUT = '<BBc16c16dd', 50, 1
local RUNNING, COMPLETED, ABANDONED = 1, 2, 3

local owner, address, action, lease, retention, slack_ms = struct.unpack('<c16c16dddd', ARGV[1])
local now = tonumber(ARGV[2]) or server_now()
local raw = redis.pcall('GET', KEYS[1])
if not raw then return 2 end
if type(raw) ~= 'string' or #raw < RECORD_BYTES or string.byte(raw) ~= RECORD_LAYOUT then return bad_value(KEYS[1]) end
local _, state, held, fingerprint, lease_until, expires = struct.unpack(RECORD, raw)
if expires <= now then return 2 end
local again = action == 4 and state == COMPLETED and string.sub(raw, RECORD_BYTES + 1) == ARGV[3]
if held ~= owner or (state ~= RUNNING and not again) then return 0 end

local answer = ''
if again then
  answer = ARGV[3]
elseif action == 1 or action == 4 then
  state, expires, answer = COMPLETED, now + retention, ARGV[3]
elseif action == 2 then
  state, expires = ABANDONED, now + lease
else
  lease_until = now + lease
  expires = math.max(expires, lease_until)
end
local value = struct.pack(RECORD, RECORD_LAYOUT, state, held, fingerprint, lease_until, expires) .. answer
local ms = string.format('%.0f', math.ceil((expires - now) / 1000) + slack_ms)
local done = redis.pcall('SET', KEYS[1], value, 'PX', ms)
if done.err then return redis.error_reply(done.err) end
if not KEYS[2] then return 1 end
local set = redis.pcall('ZADD', KEYS[2], string.format('%.0f', expires), address)
if type(set) == 'table' then return bad_value(KEYS[2]) end
local last = tonumber(redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2])
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', math.ceil((last - now) / 1000) + slack_ms))
return 1
