-- Records last uses of keys in one shard. Keeps the latest use of each key, and ignores keys that don't exist.
--
-- KEYS: usage; then the id index of each key. ARGV: the id and the time in microseconds of each.
for at = 2, #KEYS do
    local id, used = ARGV[2 * at - 3], ARGV[2 * at - 2]
    if redis.call('EXISTS', KEYS[at]) == 1 then
        local known = redis.call('HGET', KEYS[1], id)
        if not known or tonumber(known) < tonumber(used) then
            redis.call('HSET', KEYS[1], id, used)
        end
    end
end
return #KEYS - 1
