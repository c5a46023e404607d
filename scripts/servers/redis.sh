# One Redis node. Sourced by `brokers`. From $port: plain, +1 TLS that checks a client certificate when there is one.
# Users: default without a password, as the server's own configuration has it, and test, password secret; both may do
# everything. What it acknowledged survives `kill -9`, but for what it had put off while the disk was busy: with
# `appendfsync always` that, too.

# Not -LOADING, as while it reads its data. With a password for everybody it says that one is needed.
answers() {
  exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'PING\r\n' >&3 &&
    case $(timeout 2 head -c 5 <&3) in +PONG | -NOAU) ;; *) false ;; esac
}

up() {
  local program=${REDIS_SERVER:-redis-server}
  command -v "$program" >/dev/null || fail "$program is missing; as root: apt-get install --yes --no-install-recommends redis-server"
  command -v openssl >/dev/null || fail 'openssl is missing; as root: apt-get install --yes openssl'
  [ -z "$(server)" ] || fail "already running as process $(cat "$dir/pid")"
  choose_port 2 "${REDIS_PORT:-6379}"
  need_free "$port" $((port + 1))
  "$servers/certs.sh" "$dir/certs"
  mkdir -p "$dir/data"
  cat >"$dir/redis.conf" <<CONF
bind 127.0.0.1
port $port
tls-port $((port + 1))
tls-cert-file $dir/certs/server.pem
tls-key-file $dir/certs/server.key
tls-ca-cert-file $dir/certs/ca.pem
tls-auth-clients optional
user test on >secret ~* &* +@all
dir $dir/data
appendonly yes
appendfsync everysec
save ""
set-proc-title no
$(printf '%b' "${REDIS_EXTRA:-}")
CONF
  launch "$program" "$dir/redis.conf"
  echo "$launched" >"$dir/pid"
  await "${REDIS_WAIT:-30}" redis
  echo "redis: redis://127.0.0.1:$port, TLS $((port + 1)), process $(cat "$dir/pid"), in $dir"
}
