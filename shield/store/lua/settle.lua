-- settle.lua: what became of a request, once its actual cost is known: a refund or an extra charge for each bucket of a
-- receipt, in one atomic step, once per receipt on any node.
--
-- KEYS     the mark of the receipt first, when mode is 1; then the cell of each bucket, which several may share
-- ARGV[1]  doubles, little-endian: slack_ms, mode, charged_us, expires_us; then for each bucket "c8dddddddd": its
--          section's id, then kind, limit, a, b, c, d (see level.lua), delta, start_us
--            mode      1 once per receipt: the mark is set with the same step and lives until the receipt has expired
--                      (by this clock, plus the slack); 2 the same without a mark, which was set before; 0 undo: a charge
--                      that nobody was told of is taken back, as if it had not been where nothing has come since
--            delta     units: below 0 a refund, above 0 an extra charge
--            start_us  windows: the start of the window that was charged
-- ARGV[2]  tests only: the instant in whole us. Empty: the server's own TIME
--
-- Returns integers: now_us, status. 1 settled; 0 settled before; 2 the receipt has expired; 3 the boundaries of a
-- calendar do not hold now: nothing done, ask again with others.
--
-- A refund of r units charged at t0 gives a token bucket at most r less what has drained since t0, and a window only
-- the units of the window that was charged: anything more would mint. An extra charge is debt, at most one limit
-- below empty. Number budget: see level.lua.

local blob, keys = ARGV[1], #KEYS
local slack_ms, once, charged, expires, position = unpack_from('<dddd', blob)
local now = tonumber(ARGV[2]) or server_now()
local first = once == 1 and 2 or 1
if #blob ~= 32 + 72 * (keys - first + 1) then
  return redis.error_reply('SHIELD ' .. #blob .. ' bytes of settlement do not match ' .. keys .. ' keys')
end
if once == 1 and now >= expires then return {now, 2} end

-- Elapsed time is the bucket's own, which never runs backwards: after a step of the clock, drain that the bucket has
-- seen counts although now does not know of it. One counted before the charge was rebased since, and owes nothing.
local function refund_bucket(s, ch, units)
  if s.at < charged then return end
  local drained, ticks = muldivmod(s.at - charged, ch.a, ch.b)
  -- back = units - (drained + ticks / p), in whole units and ticks
  local back = units - drained
  if ticks > 0 then
    back, ticks = back - 1, ch.b - ticks
  end
  if back < 0 then return end
  back, ticks = s.units - back, s.ticks - ticks
  if ticks < 0 then
    back, ticks = back - 1, ticks + ch.b
  end
  if back < 0 then
    back, ticks = 0, 0
  end
  s.units, s.ticks = back, ticks
end

local function refund_window(s, ch, units)
  if s.start == ch.charged_start then
    s.cur = s.cur - math.min(units, s.cur)
  elseif ch.kind == SLIDING and s.start == ch.charged_start + ch.a then
    s.prev = s.prev - math.min(units, s.prev)
  end
end

local function owe(s, ch, units)
  local floor_units = 2 * ch.limit
  if ch.kind ~= BUCKET then
    if s.cur < floor_units then s.cur = math.min(s.cur + units, floor_units) end
  elseif s.units < floor_units then
    if units <= floor_units - s.units - (s.ticks > 0 and 1 or 0) then
      s.units = s.units + units
    else
      s.units, s.ticks = floor_units, 0
    end
  end
end

-- A bucket that was last written at the instant of a charge has drained nothing since, so taking the charge back is
-- exact: it is as it would be without it. What is left to refund otherwise.
local function undo(ch, cell, n)
  local units = -ch.delta
  if once ~= 0 or units <= 0 or ch.kind ~= BUCKET or not n or cell[n + 5] ~= charged or cell[n + 3] < units then return false end
  cell[n + 3] = cell[n + 3] - units
  return true
end

local charges, names, known = {}, {}, {}
for i = first, keys do
  local ch = {key = KEYS[i]}
  ch.id, ch.kind, ch.limit, ch.a, ch.b, ch.c, ch.d, ch.delta, ch.charged_start, position =
    unpack_from('<c8dddddddd', blob, position)
  charges[#charges + 1] = ch
  if not known[ch.key] then
    names[#names + 1] = ch.key
    known[ch.key] = #names
  end
end

local cells, states = read_cells(names), {}
for i = 1, #charges do
  local ch, s = charges[i], {}
  local cell = cells[known[ch.key]]
  local n = cell and find(cell, ch.id)
  if not cell or (n and cell[n + 1] ~= (ch.kind == BUCKET and BUCKET_TAG or WINDOW_TAG)) then return bad_value(ch.key) end
  local undone = undo(ch, cell, n)
  if ch.kind == BUCKET then
    s.units, s.ticks, s.at, s.rebased, s.out, s.leases = touch_bucket(ch, cell, n, now)
  else
    s.cur, s.prev, s.start, s.finish, s.rebased = touch_window(ch, cell, n, now)
    if not s.cur then return {now, 3} end
  end
  if undone then ch.delta, s.rebased = 0, true end
  ch.cell, states[i] = cell, s
end

if once == 1 then
  local ms = math.ceil((expires - now) / 1000) + slack_ms
  if not call('SET', KEYS[1], '1', 'PX', string.format('%.0f', ms), 'NX') then return {now, 0} end
end
for i = 1, #charges do
  local ch, s = charges[i], states[i]
  local units, ticks, cur, prev = s.units, s.ticks, s.cur, s.prev
  if ch.delta > 0 then
    owe(s, ch, ch.delta)
  elseif ch.delta == 0 then
    -- undone already
  elseif ch.kind == BUCKET then
    refund_bucket(s, ch, -ch.delta)
  else
    refund_window(s, ch, -ch.delta)
  end
  if s.rebased or s.units ~= units or s.ticks ~= ticks or s.cur ~= cur or s.prev ~= prev then
    if ch.kind == BUCKET then
      keep(ch.cell, find(ch.cell, ch.id), ch, s.units, s.ticks, s.at, s.out, s.leases)
    else
      keep(ch.cell, find(ch.cell, ch.id), ch, s.cur, s.prev, s.start, s.finish)
    end
  end
end
for i = 1, #names do
  local cell = cells[i]
  if cell[#cell] then
    local problem = write_cell(names[i], cell, now, slack_ms)
    if problem then return redis.error_reply(problem) end
  end
end
return {now, 1}
