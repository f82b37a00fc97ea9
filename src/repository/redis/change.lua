-- Makes one atomic change of one shard. All checks come first, so that a change is applied completely or not at all.
--
-- KEYS: head, events, all, usage, request; then for each step: record, id index, owner index, revoked.
-- ARGV: maximum number of events to keep, the channel of wake-ups for followers, the id of the key that the request
--   creates ("" without a request), the number of milliseconds for which the request is stored, "1" if a revoked hash may
--   be revived; then for each step: the operation ("create", "replace" or "delete"), the required beginning of the stored
--   record ("" accepts any record), the record without its revision, the member of the indexes, the value of the id index,
--   the key's id, the event, "1" if the record to create is itself revoked.
-- Returns the new revisions, one per step, or one word that states why nothing was changed.
local KEYS_BEFORE, KEYS_PER_STEP = 5, 4
local ARGS_BEFORE, ARGS_PER_STEP = 5, 8
local steps = (#ARGV - ARGS_BEFORE) / ARGS_PER_STEP
-- Revisions are times in microseconds. A clock beyond this time (the year 2191) is wrong, and revisions that follow it
-- could exceed 2^53, above which Lua's numbers are not exact.
local LATEST = 7e15

local function names(step)
    local at = KEYS_BEFORE + KEYS_PER_STEP * (step - 1)
    return KEYS[at + 1], KEYS[at + 2], KEYS[at + 3], KEYS[at + 4]
end

-- Returns whether a stored record is revoked. A record that can't be read counts as revoked.
local function is_revoked(stored)
    local parsed, record = pcall(cjson.decode, string.match(stored, '^%d+ (.*)$') or '')
    return not parsed or type(record) ~= 'table' or record['revoked_at'] ~= nil
end

if ARGV[3] ~= '' and redis.call('EXISTS', KEYS[5]) == 1 then
    return { 'exists' }
end
for step = 1, steps do
    local record, id, _, revoked = names(step)
    local at = ARGS_BEFORE + ARGS_PER_STEP * (step - 1)
    local operation, expected = ARGV[at + 1], ARGV[at + 2]
    if operation == 'create' then
        if redis.call('EXISTS', record, id) > 0 then
            return { 'exists' }
        end
        if ARGV[5] ~= '1' and ARGV[at + 8] ~= '1' and redis.call('EXISTS', revoked) == 1 then
            return { 'revoked' }
        end
    else
        local stored, index = redis.call('GET', record), redis.call('GET', id)
        if not stored or not index then
            return { 'missing' }
        end
        -- The key was deleted and created again since it was looked up, possibly for another owner.
        if index ~= ARGV[at + 5] then
            return { 'conflict' }
        end
        if string.sub(stored, 1, #expected) ~= expected then
            return { 'conflict' }
        end
    end
end

-- The revision is larger than all earlier ones, even after a failover that lost the last ones, or if the head was lost.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
if now > LATEST then
    now = 1
end
local revision = math.max(now - 1, tonumber(redis.call('HGET', KEYS[1], 'revision') or '0'))
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if newest then
    revision = math.max(revision, tonumber(string.match(newest[1], '^%d+')))
end
for step = 1, steps do
    local record = names(step)
    local stored = redis.call('GET', record)
    if stored then
        revision = math.max(revision, tonumber(string.match(stored, '^%d+ ') or '0'))
    end
end

-- A lost head counts from the stored events.
if redis.call('HEXISTS', KEYS[1], 'events') == 0 then
    redis.call('HSET', KEYS[1], 'events', redis.call('XLEN', KEYS[2]))
end

local answer = {}
for step = 1, steps do
    local record, id, owner, revoked = names(step)
    local at = ARGS_BEFORE + ARGS_PER_STEP * (step - 1)
    local operation, body, member, index, key_id, event =
        ARGV[at + 1], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7]
    revision = revision + 1
    local text = string.format('%.0f', revision)
    -- The only command that can fail comes first.
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], text .. '-1', 'event', event)
    if operation == 'delete' then
        if is_revoked(redis.call('GET', record)) then
            redis.call('SET', revoked, text)
        end
        redis.call('DEL', record, id)
        redis.call('ZREM', KEYS[3], member)
        redis.call('ZREM', owner, member)
        redis.call('HDEL', KEYS[4], key_id)
    else
        redis.call('SET', record, text .. ' ' .. body)
        if operation == 'create' then
            redis.call('SET', id, index)
            redis.call('ZADD', KEYS[3], 0, member)
            redis.call('ZADD', owner, 0, member)
            if ARGV[at + 8] ~= '1' then
                redis.call('DEL', revoked)
            end
        end
    end
    redis.call('HSET', KEYS[1], 'revision', text)
    redis.call('HINCRBY', KEYS[1], 'events', 1)
    answer[step] = text
end
if ARGV[3] ~= '' then
    redis.call('SET', KEYS[5], ARGV[3], 'PX', ARGV[4])
end
-- The user may lack the permission to publish. The change is valid nevertheless, because a wake-up is only a hint.
redis.pcall('PUBLISH', ARGV[2], '')
return answer
