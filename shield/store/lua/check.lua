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
-- Returns doubles, little-endian, in one string: now_us, then for each request its status, where it has a nonce the us until
-- waiting helps with that (0: it does not), and five for each charge, the state after its step:
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

local KEYS, ARGV = KEYS, ARGV
local slack_ms = unpack_from('<d', ARGV[1])
local now = tonumber(ARGV[2]) or server_now()
local shapes, requests, names, known, places, sections, width = {}, {}, {}, {}, {}, {}, 1

local function read_shape(blob)
  if #blob < 16 or #blob % 72 ~= 16 then return nil end
  local mode, keys, position = unpack_from('<dd', blob)
  local shape = {refused = mode % 2 == 1, nonce = mode >= 2, keys = keys, places = 0, cells = {}, size = (#blob - 16) / 72}
  local seen = {}
  while position <= #blob do
    local id, key, kind, flags, limit, a, b, c, d
    id, key, kind, flags, limit, a, b, c, d, position = unpack_from('<c8dddddddd', blob, position)
    shape[#shape + 1] = {id = id, key = key, kind = kind, flags = flags, limit = limit, a = a, b = b, c = c, d = d}
    if kind == CONCURRENCY then
      shape.places = shape.places + 1
    elseif not seen[key] then
      seen[key] = true
      shape.cells[#shape.cells + 1] = key
    end
  end
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
    fits = #packed == 8 * shape.size
    costs = fits and {unpack_from('<' .. rep('d', shape.size), packed)}
  end
  if not fits or not costs or #costs < shape.size then
    return redis.error_reply('SHIELD the charges of request ' .. #requests + 1 .. ' do not match its keys')
  end
  local request = {shape = shape, base = base, costs = costs, lease = argument + 2 + extra}
  requests[#requests + 1] = request
  if extra > 0 then
    local nonce = {key = KEYS[base + shape.keys + 1], fence = KEYS[base + shape.keys + 2], owner = ARGV[argument + 3]}
    if not nonce.owner or #ARGV[argument + 2] ~= 32 then
      return redis.error_reply('SHIELD the nonce of request ' .. #requests .. ' is not there')
    end
    nonce.stamp, nonce.window, nonce.skew, nonce.wary = unpack_from('<dddd', ARGV[argument + 2])
    request.nonce, width = nonce, width + 1
  end
  -- Which of the cells to read lies at each key: the same one, where requests share it.
  for i = 1, #shape.cells do
    local at = base + shape.cells[i]
    local key = KEYS[at]
    local place = known[key]
    if not place then
      place = #names + 1
      known[key], names[place] = place, key
    end
    places[at] = place
  end
  argument, base, width = argument + 2 + extra + shape.places, base + shape.keys + extra, width + 1 + 5 * shape.size
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
  local held = try('GET', nonce.key)
  if held and (type(held) ~= 'string' or tonumber(string.match(held, '^%d+') or 'inf') > now) then return 5, 0 end
  return nil, 0
end

local function take_nonce(nonce)
  local ms = math.ceil((nonce.until_us - now) / 1000) + slack_ms
  local value = string.format('%.0f:', nonce.until_us) .. nonce.owner
  local reply = try('SET', nonce.key, value, 'PX', string.format('%.0f', ms))
  return reply.err
end

-- How many leases of a set hold a place. Nil when the value is no set.
local function count_places(key)
  local count = try('ZCOUNT', key, string.format('(%.0f', now), '+inf')
  return type(count) ~= 'table' and count or nil
end

-- When enough leases will have expired for the cost; 0 when the cost never fits.
local function nth_expiry(in_use, cost, ch, key)
  if cost > ch.limit then return 0 end
  local missing = in_use + cost - ch.limit
  local found = call('ZRANGEBYSCORE', key, string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', missing - 1, 1)
  return tonumber(found[2])
end

local function take_places(cost, lease_id, ch, key)
  local members, expiry = {}, string.format('%.0f', now + ch.a)
  for n = 1, cost do
    members[2 * n - 1], members[2 * n] = expiry, string.format('%s:%d', lease_id, n)
  end
  local reply = try('ZADD', key, unpack(members))
  if type(reply) == 'table' then return reply.err end
  call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
  -- After a step of the clock older leases may outlive the new ones.
  local last = tonumber(call('ZRANGE', key, -1, -1, 'WITHSCORES')[2])
  call('PEXPIRE', key, string.format('%.0f', math.ceil((last - now) / 1000) + slack_ms))
end

-- Charges a refusal, up to empty and never beyond; keeps what that, or the clock's rebase, has changed. The state begins
-- behind `at` in the reply.
local function penalise(ch, cost, cell, n, reply, at, rebased, leases)
  local w, x, y, tail, changed = reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4], rebased
  if ch.kind == CONCURRENCY then return end
  if ch.flags ~= 3 then
    -- no penalty
  elseif ch.kind == BUCKET then
    if w < ch.limit then
      if cost <= ch.limit - w - tail - (x > 0 and 1 or 0) then
        w = w + cost
      elseif w < ch.limit - tail then
        w, x = ch.limit - tail, 0
      end
      changed = true
    end
  else
    local left = left_in_window(ch, w, x, y, now)
    if left > 0 then w, changed = w + math.min(cost, left), true end
  end
  if changed then
    reply[at + 1], reply[at + 2] = w, x
    keep(cell, n, ch, w, x, y, tail, leases)
  end
end

-- Decides one request over the cells, writes what became of it into the reply from `at` on, and says where that ends, or
-- what was wrong with a write. States are worked out in the reply; into a cell they come by `keep` alone.
local function decide(request, cells, may_take, reply, at)
  local shape, costs, base, lease, nonce = request.shape, request.costs, request.base, request.lease, request.nonce
  local first, admitted, nonce_status, retry, problem = at, not shape.refused, nil, 0, nil
  local status, rebased, leases = admitted and 1 or 0, nil, nil
  if nonce then
    nonce_status, retry, problem = look_at_nonce(nonce, may_take)
    if problem then return nil, problem end
    if nonce_status then admitted = false end
    first = at + 1
  end
  local n = first
  for i = 1, shape.size do
    local ch, cost, left = shape[i], costs[i], nil
    local kind = ch.kind
    if kind == CONCURRENCY then
      local in_use = count_places(KEYS[base + ch.key])
      if in_use then
        left = ch.limit - in_use
        reply[n + 2], reply[n + 3], reply[n + 4], reply[n + 5] = in_use, 0, 0, 0
      else
        status = 4
      end
    else
      local cell = cells[places[base + ch.key]]
      local section = cell and find(cell, ch.id)
      sections[i] = section
      if not cell or (section and cell[section + 1] ~= (kind == BUCKET and BUCKET_TAG or WINDOW_TAG)) then
        status = 4
      elseif kind == BUCKET then
        local units, ticks, counted_us, mended, out, of = touch_bucket(ch, cell, section, now)
        left = ch.limit - units - out - (ticks > 0 and 1 or 0)
        reply[n + 2], reply[n + 3], reply[n + 4], reply[n + 5] = units, ticks, counted_us, out
        if mended then
          rebased = rebased or {}
          rebased[i] = true
        end
        if of then
          leases = leases or {}
          leases[i] = of
        end
      else
        local cur, prev, start, finish, mended = touch_window(ch, cell, section, now)
        if cur then
          left = left_in_window(ch, cur, prev, start, now)
          reply[n + 2], reply[n + 3], reply[n + 4], reply[n + 5] = cur, prev, start, finish
          if mended then
            rebased = rebased or {}
            rebased[i] = true
          end
        else
          status = 3
        end
      end
    end
    if not left then
      local finish = first + 5 * shape.size
      reply[at] = status
      for m = at + 1, finish do reply[m] = 0 end
      if status == 4 then reply[first + 1] = ch.key end
      return finish + 1
    end
    if cost == 0 or cost <= left then
      reply[n + 1] = 0
    else
      reply[n + 1] = 1
      if ch.flags % 2 == 1 then admitted = false end
    end
    n = n + 5
  end

  if not admitted then status = nonce_status or 0 elseif not may_take then status = 2 end
  n = first
  for i = 1, shape.size do
    local ch, cost = shape[i], costs[i]
    local fits, kind, of = reply[n + 1] == 0, ch.kind, leases and leases[i]
    if cost > 0 and may_take then
      local cell, section, mended = cells[places[base + ch.key]], sections[i], rebased and rebased[i]
      -- Where leases come and go, the sections behind them move.
      if leases and kind ~= CONCURRENCY then section = find(cell, ch.id) end
      if not admitted then
        penalise(ch, cost, cell, section, reply, n + 1, mended, of)
      elseif not fits then
        if mended then keep(cell, section, ch, reply[n + 2], reply[n + 3], reply[n + 4], reply[n + 5], of) end
      elseif kind == CONCURRENCY then
        problem = take_places(cost, ARGV[lease], ch, KEYS[base + ch.key])
        if problem then return nil, problem end
        reply[n + 2] = reply[n + 2] + cost
      else
        local w = reply[n + 2] + cost
        reply[n + 2] = w
        keep(cell, section, ch, w, reply[n + 3], reply[n + 4], reply[n + 5], of)
      end
    end
    if status == 2 and fits and cost > 0 then reply[n + 1] = 2 end
    if kind == CONCURRENCY then
      if not fits then reply[n + 3] = nth_expiry(reply[n + 2], cost, ch, KEYS[base + ch.key]) end
      lease = lease + 1
    elseif kind == BUCKET then
      local out = reply[n + 5]
      if out > 0 then
        if not fits and out + cost > ch.limit then reply[n + 4] = math.max(reply[n + 4], of.last_us) end
        reply[n + 2] = reply[n + 2] + out
      end
    end
    n = n + 5
  end
  if nonce and status == 1 then
    problem = take_nonce(nonce)
    if problem then return nil, problem end
  end
  reply[at] = status
  if nonce then reply[first] = retry end
  return n + 1
end

local function decide_all(may_take)
  -- A list of its full length at once: one that grows item by item is made anew time and again.
  local reply, cells, at, problem = {string.byte(rep('.', width), 1, -1)}, read_cells(names), 2, nil
  reply[1] = now
  for i = 1, #requests do
    at, problem = decide(requests[i], cells, may_take, reply, at)
    if problem then return nil, problem end
  end
  for i = 1, #names do
    local cell = cells[i]
    if cell and cell[#cell] then
      problem = write_cell(names[i], cell, now, slack_ms)
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
return packed(reply)
