-- One atomic change of one shard: checks all, then does all.
--
-- KEYS: head, events, all, usage; then for each step: record, id index, owner index.
-- ARGV: the most events to keep, the channel that followers listen to; then for each step:
--   what ("create", "replace" or "delete"), the expected revision ("" for any), the record without its revision, the
--   member of the indexes, the value of the id index, the key's id, the event.
-- Answers the new revisions, one a step, or one word that says why nothing was done.
local steps = (#ARGV - 2) / 7

for step = 1, steps do
    local record, id = KEYS[3 * step + 2], KEYS[3 * step + 3]
    local what, expected = ARGV[7 * step - 4], ARGV[7 * step - 3]
    if what == 'create' then
        if redis.call('EXISTS', record, id) > 0 then
            return { 'exists' }
        end
    else
        local stored, index = redis.call('GET', record), redis.call('GET', id)
        if not stored or not index then
            return { 'missing' }
        end
        -- Deleted and made again since it was looked up, perhaps for another owner.
        if index ~= ARGV[7 * step] then
            return { 'conflict' }
        end
        if expected ~= '' and string.sub(stored, 1, #expected + 1) ~= expected .. ' ' then
            return { 'conflict' }
        end
    end
end

-- Larger than all before: also after a failover that lost the last ones, or if the head itself was lost.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local revision = math.max(now - 1, tonumber(redis.call('HGET', KEYS[1], 'revision') or '0'))
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if newest then
    revision = math.max(revision, tonumber(string.match(newest[1], '^%d+')))
end
for step = 1, steps do
    local stored = redis.call('GET', KEYS[3 * step + 2])
    if stored then
        revision = math.max(revision, tonumber(string.match(stored, '^%d+') or '0'))
    end
end

-- A head that was lost begins with what there is.
if redis.call('HEXISTS', KEYS[1], 'events') == 0 then
    redis.call('HSET', KEYS[1], 'events', redis.call('XLEN', KEYS[2]))
end

local answer = {}
for step = 1, steps do
    local record, id, owner = KEYS[3 * step + 2], KEYS[3 * step + 3], KEYS[3 * step + 4]
    local at = 7 * step - 4
    local what, body, member, index, key_id, event =
        ARGV[at], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
    revision = revision + 1
    local text = string.format('%.0f', revision)
    -- What could fail comes first.
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], text .. '-1', 'event', event)
    if what == 'delete' then
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
        end
    end
    redis.call('HSET', KEYS[1], 'revision', text)
    redis.call('HINCRBY', KEYS[1], 'events', 1)
    answer[step] = text
end
-- A hint, which may be forbidden here: the change stands.
redis.pcall('PUBLISH', ARGV[2], '')
return answer
