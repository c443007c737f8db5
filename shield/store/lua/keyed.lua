-- keyed.lua: check.lua for one request with an idempotency key, as the last part of the same atomic step: the key is taken
-- when the charges are, and what its record says is the refusal.
--
-- KEYS     those of check.lua for one request; then the key's record, and the set of its holder's records
-- ARGV     those of check.lua for one request; then one more, little-endian "c16c16c16dddd": owner, fingerprint and
--          address; lease_us, retention_us, how many records the holder may have, and flags, the sum of 1 where nobody
--          takes over and 2 where the holder's set lies elsewhere: it is not among KEYS then, the record has its place in
--          it already, and "how many" is 0 where there was none
--
-- Returns four: what check.lua does, a verdict, the us until waiting helps (0: it does not), and the stored answer, empty
-- where there is none.
-- verdict  0 none: the status decides, and where it is 1 the key is the request's; 1 the record is of another payload;
--          2 it has its answer; 3 it is in flight; 4 no room for another record; 5 its lease is over and nobody takes
--          over. Then nothing is taken. With 2 nothing is penalised and no charge looked at, but the last where there is a
--          nonce, which is taken and counted by it. The others' states are those of what does not fit. A nonce that is
--          refused, by the status, comes before any of them
--
-- A record is a string, see RECORD: layout, state, owner, fingerprint, lease_until_us, expires_us, then the answer. States:
-- 1 running, 2 completed, 3 abandoned. Its holder's set has the address of every record by the instant it expires.

local RECORD, RECORD_BYTES, RECORD_LAYOUT = '<BBc16c16dd', 50, 1
local RUNNING, ABANDONED = 1, 3
local MISMATCH, ANSWERED, IN_FLIGHT, CROWDED, STUCK = 1, 2, 3, 4, 5

-- include check.lua

local claim = table.remove(ARGV)
if #claim ~= 80 then return redis.error_reply('SHIELD a claim does not match its keys') end
local owner, fingerprint, address, lease, retention, most, flags = unpack_from('<c16c16c16dddd', claim)
local holder = flags < 2 and table.remove(KEYS)
local record = table.remove(KEYS)
if not record then return redis.error_reply('SHIELD a claim does not match its keys') end
local slack_ms, now = unpack_from('<d', ARGV[1]), tonumber(ARGV[2]) or server_now()
ARGV[2] = string.format('%.0f', now)

local verdict, retry, answer, known = 0, 0, '', false
local raw = try('GET', record)
if raw and (type(raw) ~= 'string' or #raw < RECORD_BYTES or string.byte(raw) ~= RECORD_LAYOUT) then return bad_value(record) end
if raw then
  local _, state, _, held, lease_until, expires = unpack_from(RECORD, raw)
  known = expires > now
  if known and state ~= ABANDONED then
    if held ~= fingerprint then
      verdict = MISMATCH
    elseif state ~= RUNNING then
      verdict, answer = ANSWERED, string.sub(raw, RECORD_BYTES + 1)
    elseif lease_until > now then
      verdict, retry = IN_FLIGHT, lease_until - now
    elseif flags % 2 == 1 then
      verdict, retry = STUCK, expires - now
    end
  end
end
if verdict == 0 and not known then
  local count = holder and try('ZCOUNT', holder, string.format('(%.0f', now), '+inf') or 0
  if type(count) == 'table' then return bad_value(holder) end
  if count >= most then verdict, retry = CROWDED, 1000000 end
end

local mode, charges = unpack_from('<d', ARGV[3]), (#ARGV[3] - 16) / 72
local reply
if charges == 0 or (verdict == ANSWERED and mode < 2) then
  reply = packed({now, verdict == 0 and mode % 2 == 0 and 1 or 0}) .. rep(packed({1, 1, 1, 1, 1}), charges)
elseif verdict == ANSWERED then
  -- The charge that counts nonces is the last; behind costs and nonce there are lease ids of others only.
  -- Whatever has refused the request elsewhere, the answer comes before it.
  ARGV[3] = pack('<d', mode - mode % 2) .. string.sub(ARGV[3], 9, 16) .. string.sub(ARGV[3], -72)
  ARGV[4] = string.sub(ARGV[4], -8)
  while #ARGV > 6 do table.remove(ARGV) end
  reply = check()
  if type(reply) == 'table' then return reply end
  reply = string.sub(reply, 1, 24) .. rep(packed({1, 1, 1, 1, 1}), charges - 1) .. string.sub(reply, 25)
else
  if verdict > 0 and mode % 2 == 0 then ARGV[3] = pack('<d', mode + 1) .. string.sub(ARGV[3], 9) end
  reply = check()
  if type(reply) == 'table' then return reply end
end

if verdict == 0 and unpack_from('<d', reply, 9) == 1 then
  local expires = now + math.max(lease, retention)
  local value = pack(RECORD, RECORD_LAYOUT, RUNNING, owner, fingerprint, now + lease, expires)
  local ms = string.format('%.0f', math.ceil((expires - now) / 1000) + slack_ms)
  local done = try('SET', record, value, 'PX', ms)
  if done.err then
    -- Only where nothing was written before: memory is full from a script's first write on, or not at all.
    if not string.find(done.err, 'OOM', 1, true) then return redis.error_reply(done.err) end
    verdict, retry = CROWDED, 1000000
  elseif holder then
    -- In this order: a set that was empty for a moment would be gone, and of a slot on its way no key can be made here.
    call('ZADD', holder, string.format('%.0f', expires), address)
    call('ZREMRANGEBYSCORE', holder, '-inf', ARGV[2])
    local last = tonumber(call('ZRANGE', holder, -1, -1, 'WITHSCORES')[2])
    call('PEXPIRE', holder, string.format('%.0f', math.ceil((last - now) / 1000) + slack_ms))
  end
end
return {reply, verdict, retry, answer}
