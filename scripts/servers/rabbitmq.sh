# One RabbitMQ node. Sourced by `brokers`. User guest, password guest. From $port: amqp, +1 amqps, +2 management HTTP,
# +3 Prometheus, +4 streams, +5 Erlang distribution, +6 its own epmd.
# A client certificate is checked when there is one, and may stand for a user by its common name (EXTERNAL).

programs=/usr/lib/rabbitmq/bin # not the wrappers in /usr/sbin: they drop the environment
install='apt-get install --yes --no-install-recommends rabbitmq-server'

# ask PORT REQUEST COUNT: the first COUNT bytes of the answer.
ask() { exec 3<>"/dev/tcp/127.0.0.1/$1" && printf "$2" >&3 && timeout 2 head -c "$3" <&3 | tr -d '\0'; }
answers() {
  grep -q 'startup complete' "$dir/log" &&
    [ "$(ask "$port" 'AMQP\0\0\x09\x01' 1 && ask $((port + 2)) 'GET / HTTP/1.0\r\n\r\n' 12)" = $'\1HTTP/1.1 200' ]
}

# What every Erlang program of the node is told.
node() {
  export HOME=$dir LANG=C.UTF-8 RABBITMQ_NODENAME=t$port@localhost ERL_EPMD_PORT=$((port + 6)) ERL_EPMD_ADDRESS=127.0.0.1
}

up() {
  local root=${RABBITMQ_ROOT:-} run
  [ -z "$root" ] || root=$(cd "$root" && pwd)
  [ -x "$root$programs/rabbitmq-server" ] || fail "rabbitmq-server is missing; as root: $install"
  command -v openssl >/dev/null || fail 'openssl is missing; as root: apt-get install --yes openssl'
  [ -z "$(server)" ] || fail "already running as process $(cat "$dir/pid")"
  choose_port 7 "${RABBITMQ_PORT:-5672}"
  stop TERM # what a killed node left: its epmd
  need_free $(seq "$port" $((port + 6)))
  "$servers/certs.sh" "$dir/certs"
  cat >"$dir/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$port
listeners.ssl.1 = 127.0.0.1:$((port + 1))
ssl_options.cacertfile = $dir/certs/ca.pem
ssl_options.certfile = $dir/certs/server.pem
ssl_options.keyfile = $dir/certs/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
management.tcp.ip = 127.0.0.1
management.tcp.port = $((port + 2))
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = $((port + 3))
stream.listeners.tcp.1 = 127.0.0.1:$((port + 4))
vm_memory_high_watermark.absolute = 2GB
disk_free_limit.absolute = 200MB
max_message_size = 134217728
log.console = true
log.file = false
$(printf '%b' "${RABBITMQ_EXTRA:-}")
CONF
  echo '[rabbitmq_management,rabbitmq_prometheus,rabbitmq_stream,rabbitmq_auth_mechanism_ssl].' >"$dir/plugins"
  run=("$programs/rabbitmq-server")
  # A mount namespace of its own: the mounts vanish with the server.
  [ -z "$root" ] || run=(unshare -m sh -c 'for d in /proc /dev "$1"; do mkdir -p "$0$d" && mount --rbind "$d" "$0$d" || exit; done; exec chroot "$0" "$2"' "$root" "$dir" "${run[@]}")
  echo "$root" >"$dir/root"
  node
  export RABBITMQ_MNESIA_BASE=$dir/data RABBITMQ_LOG_BASE=$dir RABBITMQ_CONFIG_FILE=$dir/rabbitmq.conf \
    RABBITMQ_ENABLED_PLUGINS_FILE=$dir/plugins RABBITMQ_PID_FILE=$dir/pid RABBITMQ_DIST_PORT=$((port + 5)) \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
  launch "${run[@]}"
  await "${RABBITMQ_WAIT:-90}" rabbitmq
  echo "rabbitmq: amqp://guest:guest@127.0.0.1:$port, management http://127.0.0.1:$((port + 2)), process $(cat "$dir/pid"), in $dir"
}

ctl() {
  local pid root enter=()
  pid=$(server) || fail "no node runs in $dir"
  port=$(cat "$dir/port") root=$(cat "$dir/root")
  node
  [ -z "$root" ] || enter=(nsenter -m -t "$pid" chroot "$root")
  exec "${enter[@]}" "$programs/rabbitmqctl" "$@"
}
