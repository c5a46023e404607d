# What every server needs. Sourced by `brokers`; $dir is the server's folder, $port its first port.
# Every process of a server carries BROKER_DIR=$dir, so that only what was started here is ever ended.

fail() { echo "brokers: $*" >&2; exit 1; }

# reason FILE: what it says about a failure.
reason() { grep -iE -m 2 -A 2 'error|fatal|exception' "$1" || tail -n 5 "$1"; }

# ours FILE...: the process ids, of these /proc/PID/environ, that belong to the server.
ours() { grep -slzxF "BROKER_DIR=$dir" "$@" | cut -d / -f 3; }

# The process id of the server, if it runs.
server() { local pid && pid=$(cat "$dir/pid" 2>/dev/null) && ours "/proc/$pid/environ"; }

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# need_free PORT...: a server that was just killed may hold one for a moment.
need_free() {
  local one i
  for one; do
    for ((i = 0; ; i++)); do is_taken "$one" || break; ((i < 30)) || fail "port $one is taken"; sleep 0.1; done
  done
}

# choose_port COUNT DEFAULT: sets $port where none was given. Zero: COUNT free ones in a row, below those that the kernel
# gives to connections. Others who choose at the same time choose others: each block is locked while we run.
choose_port() {
  local first tries one
  if [ -z "$port" ]; then port=$(cat "$dir/port" 2>/dev/null || echo "$2"); fi
  if [ "$port" = 0 ] && [ -s "$dir/port" ]; then port=$(cat "$dir/port"); fi
  for ((tries = 0; port == 0; tries++)); do
    ((tries < 200)) || fail "no $1 free ports in a row"
    first=$((20000 + RANDOM % 1200 * 10))
    { exec {port_lock}>"${TMPDIR:-/tmp}/brokers-port-$first.lock"; } 2>/dev/null || continue
    flock -n "$port_lock" || continue
    for ((one = first; one < first + $1; one++)); do ! is_taken "$one" || continue 2; done
    port=$first
  done
  echo "$port" >"$dir/port"
}

# launch COMMAND...: leaves it running with none of our open files, as a lock or pipe of the caller's would else stay held.
launch() {
  export BROKER_DIR=$dir
  (for fd in /proc/self/fd/*; do [ "${fd##*/}" -le 2 ] || eval "exec ${fd##*/}>&-"; done && exec setsid "$@") >"$dir/log" 2>&1 </dev/null &
  launched=$!
}

# await SECONDS NAME: returns when `answers` succeeds; fails with the reason when what was launched ends.
await() {
  local i
  for ((i = 0; i < $1 * 10; i++)); do
    if (answers) 2>/dev/null; then return; fi
    kill -0 "$launched" 2>/dev/null || fail "$2 ended: $(reason "$dir/log")"
    sleep 0.1
  done
  fail "$2 did not answer within $1 s; it still runs, see $dir/log"
}

# stop SIGNAL: sends it, after 30 s KILL, then ends what else was started for the folder. The data stays.
stop() {
  local i pid
  for ((i = 0; i < 310; i++)); do
    if ((i == 0)); then pid=$(server || true); fi
    [ -n "$pid" ] && [ -n "$(ours "/proc/$pid/environ")" ] || break
    case $i in 0) kill "-$1" "$pid" ;; 300) kill -KILL "$pid" ;; 309) fail "process $pid does not end" ;; esac || true
    sleep 0.1
  done
  for pid in $(ours /proc/[0-9]*/environ); do kill "-$1" "$pid" 2>/dev/null || true; done
  rm -f "$dir/pid"
}
