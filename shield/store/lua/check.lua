-- check.lua: one or more requests in their order, each with all its charges in one atomic step: all are taken or none.
--
-- KEYS     for each request in turn, its cells (see level.lua) and sorted sets (concurrency), none twice; then, where it
--          has a nonce, the nonce's own key and the fence of the prefix (see level.lua)
-- ARGV[1]  slack_ms, a double, little-endian
-- ARGV[2]  tests only: the instant in whole us. Empty: the server's own TIME, read once
-- ARGV[3+] for each request in turn: its shape and its costs, each empty where it is the one of the request before; where
--          it has a nonce, "<dddd" its timestamp, window and future skew in us and 1 where it is asked which run of the
--          server this is, and then text that only this request knows;
--          and for each concurrency charge the lease id its places are known by (text without a colon)
--            shape  doubles: mode, number of keys; then "c8dddddddd" for each charge: the section's id, the number of
--                   its key among the request's, kind, flags, limit, a, b, c, d (see level.lua)
--            mode   0 decide; 1 it is refused already: take nothing, penalise; 2 decide, there is a nonce; 3 it is
--                   refused already, unless for its nonce
--            flags  1 enforced (else shadow) + 2 count_denied
--            costs  a double each: units, 0 to 2^53 - 1; 0 is a peek: always fits, changes nothing
--
-- Returns integers: now_us, then for each request its status, where it has a nonce the us until waiting helps with that
-- (0: it does not), and five for each charge, the state after its step:
--   token bucket  verdict, units, ticks, at_us, out: of the units so many are out on leases (lease.lua). Where that leaves
--                 too little for this cost, at_us is when the last of them runs out: by then all of it counts as used
--   windows       verdict, cur, prev, start_us, end_us
--   concurrency   verdict, in_use, instant (us) at which enough places will have expired for this cost or 0, 0, 0
-- status   0 refused, nothing taken; 1 taken: every charge with verdict 0; 2 would fit, but Redis is out of memory,
--          nothing taken; 3 the boundaries of a calendar do not hold now: nothing taken, ask again with others; 4 the
--          value at one of its keys, whose number stands first, is not Shield's: nothing taken. After 3 and 4 the
--          states mean nothing. Refused for the nonce, nothing taken: 5 it was used; 6 its timestamp is too old;
--          7 it is too far ahead; 8 what would say whether it was used is lost
-- verdict  0 fits, 1 does not fit, 2 fits but could not be stored
--
-- A nonce is held as "until:owner" in a key of its own until timestamp + window + future skew, of the widest window that
-- the prefix has had, and then for the slack. It is looked at before all else and taken only by a request that is admitted.
--
-- A shadow charge that does not fit refuses nothing and is not taken. A refusal writes nothing, but for the penalties
-- of count_denied and for a state further ahead of the clock than its numbers explain, which could otherwise never
-- recover. Everything is read and validated before the first write, and no write after the first can fail: when that
-- one is refused for want of memory, nothing was written, and the requests are decided once more, taking nothing.
-- Number budget: see level.lua.

local slack_ms = struct.unpack('<d', ARGV[1])
local now = tonumber(ARGV[2]) or server_now()
local shapes, requests, names, known = {}, {}, {}, {}

local function read_shape(blob)
  if #blob < 16 or #blob % 72 ~= 16 then return nil end
  local mode, keys, position = struct.unpack('<dd', blob)
  local shape = {refused = mode % 2 == 1, nonce = mode >= 2, keys = keys, places = 0, format = ''}
  while position <= #blob do
    local id, key, kind, flags, limit, a, b, c, d
    id, key, kind, flags, limit, a, b, c, d, position = struct.unpack('<c8dddddddd', blob, position)
    shape[#shape + 1] = {
      id = id, key = key, kind = kind, flags = flags, limit = limit, a = a, b = b, c = c, d = d, enforced = flags % 2 == 1,
    }
    if kind == CONCURRENCY then shape.places = shape.places + 1 end
  end
  shape.format = '<' .. string.rep('d', #shape)
  return shape
end

local argument, base, shape, costs = 3, 0, nil, nil
while argument <= #ARGV do
  local blob, packed = ARGV[argument], ARGV[argument + 1]
  if blob ~= '' then
    shape = shapes[blob] or read_shape(blob)
    shapes[blob] = shape
  end
  local extra = shape and shape.nonce and 2 or 0
  local fits = shape and packed and base + shape.keys + extra <= #KEYS
  if fits and packed ~= '' then
    fits = #packed == 8 * #shape
    costs = fits and {struct.unpack(shape.format, packed)}
  end
  if not fits or not costs or #costs < #shape then
    return redis.error_reply('SHIELD the charges of request ' .. #requests + 1 .. ' do not match its keys')
  end
  local request = {shape = shape, base = base, costs = costs, leases = argument + 2 + extra}
  requests[#requests + 1] = request
  if extra > 0 then
    local nonce = {key = KEYS[base + shape.keys + 1], fence = KEYS[base + shape.keys + 2], owner = ARGV[argument + 3]}
    if not nonce.owner or #ARGV[argument + 2] ~= 32 then
      return redis.error_reply('SHIELD the nonce of request ' .. #requests .. ' is not there')
    end
    nonce.stamp, nonce.window, nonce.skew, nonce.wary = struct.unpack('<dddd', ARGV[argument + 2])
    request.nonce = nonce
  end
  for i = 1, #shape do
    local key = KEYS[base + shape[i].key]
    if shape[i].kind ~= CONCURRENCY and not known[key] then
      known[key] = true
      names[#names + 1] = key
    end
  end
  argument, base = argument + 2 + extra + shape.places, base + shape.keys + extra
end
if base ~= #KEYS or argument ~= #ARGV + 1 then
  return redis.error_reply('SHIELD ' .. #requests .. ' requests do not match ' .. #KEYS .. ' keys')
end

-- A status when the nonce refuses, and when waiting helps; or what was wrong with a write. The fence is kept here.
local function look_at_nonce(nonce, may_take)
  local span, problem = nonce.window + nonce.skew, nil
  local fence = read_fence(nonce.fence)
  local run = nonce.wary == 1 and server_run() or nil
  if not fence or (run and fence.run ~= run) then
    span = math.max(span, fence and fence.span or 0)
    fence = {since = now, widened = 0, span = span, before = span, run = run or server_run()}
    if may_take then problem = write_fence(nonce.fence, fence) end
  elseif span > fence.span then
    if fence.span > 0 then
      -- Of two changes in one window the narrower holding counts.
      if fence.widened == 0 or now > fence.widened + fence.span then fence.before = fence.span end
      fence.widened = now + WIDEN_SLACK
    end
    fence.span = span
    if may_take then problem = write_fence(nonce.fence, fence) end
  end
  if problem then return nil, 0, problem end
  nonce.until_us = nonce.stamp + fence.span
  if nonce.stamp - nonce.skew > now then return 7, nonce.stamp - nonce.skew - now end
  if nonce.stamp + nonce.window < now or nonce.stamp + nonce.window + nonce.skew <= now then return 6, 0 end
  if nonce.stamp <= fence.since + nonce.skew then return 8, math.max(fence.since + nonce.skew + 1 - now, 0) end
  if fence.widened > 0 and nonce.stamp <= fence.widened + nonce.skew and nonce.stamp + fence.before <= now then return 8, 0 end
  local held = redis.pcall('GET', nonce.key)
  if held and (type(held) ~= 'string' or tonumber(string.match(held, '^%d+') or 'inf') > now) then return 5, 0 end
  return nil, 0
end

local function take_nonce(nonce)
  local ms = math.ceil((nonce.until_us - now) / 1000) + slack_ms
  local value = string.format('%.0f:', nonce.until_us) .. nonce.owner
  local reply = redis.pcall('SET', nonce.key, value, 'PX', string.format('%.0f', ms))
  return reply.err
end

-- Nil when the value is no set.
local function touch_leases(key, cost, lease_id)
  local count = redis.pcall('ZCOUNT', key, string.format('(%.0f', now), '+inf')
  if type(count) == 'table' then return nil end
  return {cost = cost, fits = false, in_use = count, lease_id = lease_id}
end

-- When enough leases will have expired for the cost; 0 when none need to, or the cost never fits.
local function nth_expiry(s, ch, key)
  local missing = s.in_use + s.cost - ch.limit
  if s.fits or s.cost > ch.limit then return 0 end
  local found = redis.call('ZRANGEBYSCORE', key, string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', missing - 1, 1)
  return tonumber(found[2])
end

local function take_leases(s, ch, key)
  local members, expiry = {}, string.format('%.0f', now + ch.a)
  for n = 1, s.cost do
    members[2 * n - 1], members[2 * n] = expiry, string.format('%s:%d', s.lease_id, n)
  end
  local reply = redis.pcall('ZADD', key, unpack(members))
  if type(reply) == 'table' then return reply.err end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
  -- After a step of the clock older leases may outlive the new ones.
  local last = tonumber(redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2])
  redis.call('PEXPIRE', key, string.format('%.0f', math.ceil((last - now) / 1000) + slack_ms))
  s.in_use = s.in_use + s.cost
end

-- Charges a refusal, up to empty and never beyond; keeps what that, or the clock's rebase, has changed.
local function penalise(s, ch, cell)
  local changed = s.rebased
  local left = (ch.flags == 3 and ch.kind ~= CONCURRENCY) and remaining(s, ch, now) or 0
  if ch.kind == BUCKET and ch.flags == 3 and s.units < ch.limit then
    if s.cost <= left then
      s.units = s.units + s.cost
    elseif s.units < ch.limit - s.out then
      s.units, s.ticks = ch.limit - s.out, 0
    end
    changed = true
  elseif ch.kind ~= BUCKET and left > 0 then
    s.cur = s.cur + (s.cost < left and s.cost or left)
    changed = true
  end
  if changed then keep(s, ch, cell, now) end
end

-- Decides one request over the cells, appends to the reply, and says what was wrong with a write.
local function decide(request, cells, may_take, reply)
  local shape, states, admitted, lease = request.shape, {}, not request.shape.refused, request.leases
  local status, at = admitted and 1 or 0, #reply + 1
  local finish = at + 5 * #shape
  local first, nonce_status, retry, problem = at, nil, 0, nil
  if request.nonce then
    nonce_status, retry, problem = look_at_nonce(request.nonce, may_take)
    if problem then return problem end
    if nonce_status then admitted = false end
    first, finish = at + 1, finish + 1
  end
  for i = 1, #shape do
    local ch = shape[i]
    local key, cost, s = KEYS[request.base + ch.key], request.costs[i], nil
    if ch.kind == CONCURRENCY then
      s, lease = touch_leases(key, cost, ARGV[lease]), lease + 1
      if not s then status = 4 end
    else
      local cell = cells[key]
      local held = cell and cell[ch.id]
      if not cell or (held and held.tag ~= (ch.kind == BUCKET and BUCKET_TAG or WINDOW_TAG)) then
        status = 4
      elseif ch.kind == BUCKET then
        s = touch_bucket(ch, held, cost, now)
      else
        s = touch_window(ch, held, cost, now)
        if not s then status = 3 end
      end
    end
    if not s then
      reply[at] = status
      for n = at + 1, finish do reply[n] = 0 end
      if status == 4 then reply[first + 1] = ch.key end
      return
    end
    states[i] = s
    s.fits = cost == 0 or cost <= remaining(s, ch, now)
    if not s.fits and ch.enforced then admitted = false end
  end

  if not admitted then status = nonce_status or 0 elseif not may_take then status = 2 end
  for i = 1, #shape do
    local ch, s = shape[i], states[i]
    local cell = cells[KEYS[request.base + ch.key]]
    if s.cost > 0 and may_take then
      if not admitted then
        penalise(s, ch, cell)
      elseif not s.fits then
        if s.rebased then keep(s, ch, cell, now) end
      elseif ch.kind == CONCURRENCY then
        local problem = take_leases(s, ch, KEYS[request.base + ch.key])
        if problem then return problem end
      else
        if ch.kind == BUCKET then s.units = s.units + s.cost else s.cur = s.cur + s.cost end
        keep(s, ch, cell, now)
      end
    end
  end
  if request.nonce and status == 1 then
    problem = take_nonce(request.nonce)
    if problem then return problem end
  end

  reply[at] = status
  if request.nonce then
    at = first
    reply[at] = retry
  end
  for i = 1, #shape do
    local ch, s = shape[i], states[i]
    reply[at + 1] = s.fits and ((status == 2 and s.cost > 0) and 2 or 0) or 1
    if ch.kind == BUCKET then
      local at_us = s.at
      if s.out > 0 and not s.fits and s.out + s.cost > ch.limit then at_us = math.max(at_us, s.leases.last_us) end
      reply[at + 2], reply[at + 3], reply[at + 4], reply[at + 5] = s.units + s.out, s.ticks, at_us, s.out
    elseif ch.kind == CONCURRENCY then
      reply[at + 2], reply[at + 3], reply[at + 4], reply[at + 5] = s.in_use, nth_expiry(s, ch, KEYS[request.base + ch.key]), 0, 0
    else
      reply[at + 2], reply[at + 3], reply[at + 4], reply[at + 5] = s.cur, s.prev, s.start, s.finish
    end
    at = at + 5
  end
end

local function decide_all(may_take)
  local reply, cells = {now}, read_cells(names)
  for i = 1, #requests do
    local problem = decide(requests[i], cells, may_take, reply)
    if problem then return nil, problem end
  end
  for i = 1, #names do
    local cell = cells[names[i]]
    if cell and cell.changed then
      local problem = write_cell(cell, now, slack_ms)
      if problem then return nil, problem end
    end
  end
  return reply
end

local reply, problem = decide_all(true)
if problem then
  if not string.find(problem, 'OOM', 1, true) then return redis.error_reply(problem) end
  reply = decide_all(false)
end
return reply
