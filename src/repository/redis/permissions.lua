-- Runs each command that Keyvouch uses on keys, on a name without data, and returns the commands that the user may not run.
--
-- KEYS: a name with the prefix, never used for data.
local name = KEYS[1]
local commands = {
    { 'GET', name }, { 'MGET', name }, { 'SET', name, '' }, { 'EXISTS', name }, { 'DEL', name },
    { 'HSET', name, 'f', '1' }, { 'HGET', name, 'f' }, { 'HMGET', name, 'f' }, { 'HEXISTS', name, 'f' },
    { 'HINCRBY', name, 'f', '1' }, { 'HDEL', name, 'f' },
    { 'ZADD', name, '0', 'm' }, { 'ZREVRANGEBYLEX', name, '+', '-', 'LIMIT', '0', '1' }, { 'ZREM', name, 'm' },
    { 'XADD', name, '1-1', 'f', 'v' }, { 'XRANGE', name, '-', '+', 'COUNT', '1' },
    { 'XREVRANGE', name, '+', '-', 'COUNT', '1' }, { 'XLEN', name }, { 'XTRIM', name, 'MAXLEN', '0' }, { 'DEL', name },
    { 'TIME' },
}
local forbidden = {}
for _, command in ipairs(commands) do
    local answer = redis.pcall(unpack(command))
    local problem = type(answer) == 'table' and answer['err'] or ''
    -- The text depends on the version; Valkey 9 has the last one.
    local is_forbidden = string.find(problem, 'NOPERM') or string.find(problem, 'executing the script can')
        or string.find(problem, 'ACL failure in script')
    if is_forbidden then
        table.insert(forbidden, command[1])
    end
end
return forbidden
