-- blocks.lua: what nodes say of blocks, merged, and what of it is new to the node that asks.
--
-- KEYS[1]  a hash: place -> order, 41 digits, and text; beside them "~epoch" and "~version"
-- KEYS[2]  a sorted set of places by the version that wrote them last
-- KEYS[3]  a sorted set of places by the instant, in whole ms, from which they may be forgotten
-- ARGV[1]  tests only: the instant in whole us. Empty: the server's own TIME
-- ARGV[2]  16 characters that name this set of blocks if it has no name yet
-- ARGV[3]  the name of the set that the node knows, ARGV[4] up to which version; ARGV[5] how many places are kept
-- ARGV[6+] four for each that is said: place, order, text, and the ms from which it may be forgotten or ""
--
-- Of two texts for one place the one with the greater order stays, whatever order they came in. At most PAGE places are
-- forgotten and told in one run; past what is kept, those that may be forgotten first are.
-- Returns {name of the set, version, 1 where there is more, a text for each place that is new}.
-- Number budget: versions count writes, below 2^53; instants stay text or are whole.

local PAGE = 500

local places, versions, ends = KEYS[1], KEYS[2], KEYS[3]
local now_ms = string.format('%.0f', math.floor((tonumber(ARGV[1]) or server_now()) / 1000))

local function forget(place)
  redis.call('HDEL', places, place)
  redis.call('ZREM', versions, place)
  redis.call('ZREM', ends, place)
end

local epoch = redis.call('HGET', places, '~epoch')
if not epoch then
  epoch = ARGV[2]
  redis.call('HSET', places, '~epoch', epoch)
end
for i = 6, #ARGV, 4 do
  local place, said = ARGV[i], ARGV[i + 1] .. ARGV[i + 2]
  local known = redis.call('HGET', places, place)
  if not known or known < said then
    redis.call('HSET', places, place, said)
    redis.call('ZADD', versions, redis.call('HINCRBY', places, '~version', 1), place)
    if ARGV[i + 3] == '' then
      redis.call('ZREM', ends, place)
    else
      redis.call('ZADD', ends, ARGV[i + 3], place)
    end
  end
end
for _, place in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now_ms, 'LIMIT', 0, PAGE)) do
  forget(place)
end
local spare = redis.call('HLEN', places) - 2 - tonumber(ARGV[5])
if spare > 0 then
  for _, place in ipairs(redis.call('ZRANGE', ends, 0, math.min(spare, PAGE) - 1)) do
    forget(place)
  end
end

local since = ARGV[3] == epoch and ARGV[4] or '0'
local found = redis.call('ZRANGEBYSCORE', versions, '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, PAGE)
local reply = {epoch, since, 0}
for i = 1, #found, 2 do
  local said = redis.call('HGET', places, found[i])
  if said then
    reply[#reply + 1] = string.sub(said, 42)
  end
  reply[2] = found[i + 1]
end
if #found == 2 * PAGE then
  reply[3] = 1
end
return reply
