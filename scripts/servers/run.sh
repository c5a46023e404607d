# A command, and servers for as long as it runs. Sourced by `brokers`.

# run_with_servers COMMAND...: the servers' folder is target/brokers/run.XXXXXX, locked by its run, so that what a run left
# that was killed is found by the next one, ended and deleted.
run_with_servers() {
  local folder lock home=target/brokers status=0
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
  trap "forget_all '$folder'" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  "$brokers" up rabbitmq "$folder/rabbitmq" 0
  export RABBITMQ_TEST_DIR=$folder/rabbitmq RABBITMQ_TEST_PORT
  RABBITMQ_TEST_PORT=$(cat "$RABBITMQ_TEST_DIR/port")
  "$@" {lock}>&- || status=$?
  exit "$status"
}

forget_all() {
  local one
  for one in "$1"/*/; do
    [ ! -d "$one" ] || "$brokers" forget rabbitmq "$one"
  done
  rm -rf "$1"
}
