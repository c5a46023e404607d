# A command, and servers for as long as it runs. Sourced by `brokers`.

# run_with_servers COMMAND...: the servers' folder is target/brokers/run.XXXXXX, locked by its run, so that what a run left
# that was killed is found by the next one, ended and deleted.
run_with_servers() {
  local folder lock system start home=target/brokers status=0
  starts=()
  mkdir -p "$home"
  for folder in "$home"/run.*/; do
    [ -d "$folder" ] || continue
    exec {lock}>"$folder/lock"
    if flock -n "$lock"; then forget_all "$folder"; fi
    exec {lock}>&-
  done
  folder=$(cd "$(mktemp -d "$home/run.XXXXXX")" && pwd)
  exec {lock}>"$folder/lock"
  flock "$lock"
  # An interrupt goes to COMMAND as well; once that has ended, so do the servers.
  trap "end_starts; forget_all '$folder'" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  for system in rabbitmq kafka redis; do
    "$brokers" up "$system" "$folder/$system" 0 {lock}>&- &
    starts+=($!)
  done
  for start in "${starts[@]}"; do wait "$start" || fail 'not every server could be started, see above'; done
  starts=()
  export RABBITMQ_TEST_DIR=$folder/rabbitmq RABBITMQ_TEST_PORT KAFKA_TEST_DIR=$folder/kafka KAFKA_TEST_PORT
  export REDIS_TEST_DIR=$folder/redis REDIS_TEST_PORT
  RABBITMQ_TEST_PORT=$(cat "$RABBITMQ_TEST_DIR/port")
  KAFKA_TEST_PORT=$(cat "$KAFKA_TEST_DIR/port")
  REDIS_TEST_PORT=$(cat "$REDIS_TEST_DIR/port")
  "$@" {lock}>&- || status=$?
  exit "$status"
}

# What is still starting is ended before its folder goes.
end_starts() {
  ((${#starts[@]} > 0)) || return 0
  kill "${starts[@]}" 2>/dev/null || true
  wait "${starts[@]}" || true
}

forget_all() {
  local one
  for one in "$1"/*/; do
    [ ! -d "$one" ] || (dir=$(cd "$one" && pwd) && stop KILL)
  done
  rm -rf "$1"
}
