-- One atomic change of one shard: checks everything, then does everything.
--
-- KEYS: head, events, all, usage, request; then for each step: record, id index, owner index, revoked.
-- ARGV: maximum number of events to keep, the channel that followers listen to, the id of the key that the request makes
--   ("" for no request), for how many milliseconds the request is remembered, "1" if a revoked hash may be revived; then
--   for each step: what ("create", "replace" or "delete"), what the stored record has to begin with ("" for anything), the record without its
--   revision, the member of the indexes, the value of the id index, the key's id, the event, "1" if the record to create
--   is revoked itself.
-- Answers the new revisions, one per step, or one word that says why nothing was done.
local KEYS_BEFORE, KEYS_PER_STEP = 5, 4
local ARGS_BEFORE, ARGS_PER_STEP = 5, 8
local steps = (#ARGV - ARGS_BEFORE) / ARGS_PER_STEP
-- Revisions are times in microseconds. A clock beyond this one (the year 2191) is wrong, and following it would reach 2^53,
-- above which Lua can't count.
local LATEST = 7e15

local function names(step)
    local at = KEYS_BEFORE + KEYS_PER_STEP * (step - 1)
    return KEYS[at + 1], KEYS[at + 2], KEYS[at + 3], KEYS[at + 4]
end

-- Returns whether a stored record is revoked. One that can't be read may be.
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
    local what, expected = ARGV[at + 1], ARGV[at + 2]
    if what == 'create' then
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
        -- Deleted and made again since it was looked up, perhaps for another owner.
        if index ~= ARGV[at + 5] then
            return { 'conflict' }
        end
        if string.sub(stored, 1, #expected) ~= expected then
            return { 'conflict' }
        end
    end
end

-- Larger than all before: also after a failover that lost the last ones, or if the head itself was lost.
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

-- A head that was lost begins with what there is.
if redis.call('HEXISTS', KEYS[1], 'events') == 0 then
    redis.call('HSET', KEYS[1], 'events', redis.call('XLEN', KEYS[2]))
end

local answer = {}
for step = 1, steps do
    local record, id, owner, revoked = names(step)
    local at = ARGS_BEFORE + ARGS_PER_STEP * (step - 1)
    local what, body, member, index, key_id, event =
        ARGV[at + 1], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7]
    revision = revision + 1
    local text = string.format('%.0f', revision)
    -- What could fail comes first.
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], text .. '-1', 'event', event)
    if what == 'delete' then
        if is_revoked(redis.call('GET', record)) then
            redis.call('SET', revoked, text)
        end
        redis.call('DEL', record, id)
        redis.call('ZREM', KEYS[3], member)
        redis.call('ZREM', owner, member)
        redis.call('HDEL', KEYS[4], key_id)
    else
        redis.call('SET', record, text .. ' ' .. body)
        if what == 'create' then
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
-- A hint, which may be forbidden here: the change stands.
redis.pcall('PUBLISH', ARGV[2], '')
return answer
