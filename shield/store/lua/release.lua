-- release.lua: gives places of concurrency limits back, and nonces. Unknown and expired ones are no-ops.
--
-- KEYS     one sorted set for each lease (the same key may stand several times), the key of a nonce
-- ARGV[1]  tests only: the instant in whole us. Empty: the server's own TIME
-- ARGV[2+] as many lease ids, in the order of KEYS; of a nonce whose it is, which begins with a tilde
--
-- Returns an integer: the places freed. A lease's places are the members "lease_id:1", "lease_id:2" and so on, which are
-- taken, expire and are freed together, so the first that is absent ends the search: at most 1,024 steps a lease.
-- Number budget: see level.lua.

local now = tonumber(ARGV[1]) or server_now()
local freed = 0
for i = 1, #KEYS do
  if string.sub(ARGV[i + 1], 1, 1) == '~' then
    local held = redis.pcall('GET', KEYS[i])
    if type(held) == 'string' and string.match(held, ':(.*)') == ARGV[i + 1] then redis.call('PEXPIRE', KEYS[i], 0) end
  else
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', string.format('%.0f', now))
    local place = 1
    -- A set without places is gone, and of a slot on its way no key that is gone may be touched here.
    while redis.pcall('ZREM', KEYS[i], string.format('%s:%d', ARGV[i + 1], place)) == 1 do
      place = place + 1
    end
    freed = freed + place - 1
  end
end
return freed
