# One Kafka node, broker and controller (KRaft). Sourced by `brokers`. From $port: plaintext, +1 controller, +2 SASL without
# TLS, +3 TLS that checks a client certificate when there is one, +4 TLS that demands one, +5 SASL over TLS, +6 plaintext for
# who reaches it through a proxy: clients learn from a broker where it is, and this listener says that it is at +7.
# SASL: PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512, user test, password secret.
#
# The settings are for tests: one partition for each internal topic, groups that do not wait for more members, sessions from
# a second, and a broker that the controller gives up after 3 s, without which a start after `kill -9` takes 10 s longer.
# Nothing is on disk before it is acknowledged, as in any Kafka: `kill -9` loses nothing, losing power may.

pom=$servers/kafka-pom.xml
version=$(sed -n 's/.*<kafka.version>\(.*\)<.*/\1/p' "$pom")

# Metadata v0, all topics; the reply begins with its size, our number, and one broker. A port that is open is no broker yet.
answers() {
  exec 3<>"/dev/tcp/127.0.0.1/$port" && printf '\0\0\0\x10\0\3\0\0\0\0\0\1\0\2up\0\0\0\0' >&3 &&
    [ "$(timeout 2 head -c 12 <&3 | od -An -tx1 | tr -d ' \n' | cut -c 9-)" = 0000000100000001 ]
}

# need_java: 17 or newer.
need_java() {
  local words='' major
  if command -v java >/dev/null; then words=$(java --version 2>/dev/null || true); fi
  major=$(sed -n '1s/^[^ ]* \([0-9]*\).*/\1/p' <<<"$words")
  ((${major:-0} >= 17)) || fail 'Java 17 or newer is missing; as root: apt-get install --yes --no-install-recommends default-jre-headless'
}

# fetch: sets $libs, the folder of jars. Fetched aside and renamed, by one at a time: half a download is never used.
fetch() {
  libs=${KAFKA_LIBS:-${XDG_CACHE_HOME:-$HOME/.cache}/kafka-broker-$version}
  [ ! -d "$libs" ] || return 0
  command -v mvn >/dev/null || fail "Maven, which fetches Kafka $version, is missing; as root: apt-get install --yes --no-install-recommends maven"
  mkdir -p "${libs%/*}" && libs=$(cd "${libs%/*}" && pwd)/${libs##*/}
  local lock
  exec {lock}>"$libs.lock"
  flock "$lock"
  if [ ! -d "$libs" ]; then
    echo "brokers: fetching Kafka $version, 44 MB, into $libs" >&2
    rm -rf "$libs.part"
    mvn -q -B -Dstyle.color=never -f "$pom" dependency:copy-dependencies -DincludeScope=runtime \
      -DoutputDirectory="$libs.part" >"$dir/fetch.log" 2>&1 {lock}>&- || fail "mvn could not fetch Kafka $version: $(reason "$dir/fetch.log")"
    mv -T "$libs.part" "$libs"
  fi
  exec {lock}>&-
}

# listeners OFFSET: those for clients, PROXIED at the offset.
listeners() {
  local one all=()
  for one in PLAINTEXT:0 SASL:2 TLS:3 MUTUAL:4 BOTH:5 "PROXIED:$1"; do all+=("${one%:*}://127.0.0.1:$((port + ${one#*:}))"); done
  (IFS=, && echo "${all[*]}")
}

up() {
  local java jaas certs=$dir/certs scram='[name=test,password=secret]'
  need_java
  command -v openssl >/dev/null || fail 'openssl is missing; as root: apt-get install --yes openssl'
  [ -z "$(server)" ] || fail "already running as process $(cat "$dir/pid")"
  fetch
  choose_port 8 "${KAFKA_PORT:-9092}"
  need_free $(seq "$port" $((port + 6)))
  "$servers/certs.sh" "$certs"
  cat "$certs/server.key" "$certs/server.pem" "$certs/ca.pem" >"$certs/server-bundle.pem"
  cat "$certs/expired.key" "$certs/expired.pem" "$certs/ca.pem" >"$certs/expired-bundle.pem"
  jaas=org.apache.kafka.common.security
  cat >"$dir/server.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listeners=$(listeners 6),CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=$(listeners 7)
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,MUTUAL:SSL,BOTH:SASL_SSL
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
$(for one in sasl both; do
    printf "listener.name.$one.%s.sasl.jaas.config=$jaas.%s;\n" plain 'plain.PlainLoginModule required user_test="secret"' \
      scram-sha-256 'scram.ScramLoginModule required' scram-sha-512 'scram.ScramLoginModule required'
  done)
ssl.keystore.type=PEM
ssl.keystore.location=$certs/server-bundle.pem
ssl.truststore.type=PEM
ssl.truststore.location=$certs/ca.pem
listener.name.tls.ssl.client.auth=requested
listener.name.mutual.ssl.client.auth=required
log.dirs=$dir/data
auto.create.topics.enable=false
$(printf '%s=1\n' {offsets.topic,transaction.state.log,share.coordinator.state.topic}.{replication.factor,num.partitions} {transaction.state.log,share.coordinator.state.topic}.min.isr)
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=500
group.consumer.min.session.timeout.ms=3000
group.consumer.session.timeout.ms=6000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
$(printf '%b' "${KAFKA_EXTRA:-}")
CONF
  # Half the work of a start: the compiler that costs most of it is left out.
  java=(java -Xmx"${KAFKA_HEAP:-512m}" ${KAFKA_JVM--XX:TieredStopAtLevel=1 -XX:+UseSerialGC} -Dlog4j2.level="${KAFKA_LOG:-WARN}" -cp "$libs/*")
  # An id that begins with `-` would be read as an option.
  [ -e "$dir/data/meta.properties" ] ||
    "${java[@]}" kafka.tools.StorageTool format -t "$(head -c 16 /dev/urandom | base64 | tr '+/' AB | cut -c 1-22)" \
      -c "$dir/server.properties" --ignore-formatted --add-scram "SCRAM-SHA-256=$scram" --add-scram "SCRAM-SHA-512=$scram" \
      >"$dir/format.log" 2>&1 || fail "format: $(reason "$dir/format.log")"
  launch "${java[@]}" kafka.Kafka "$dir/server.properties"
  echo "$launched" >"$dir/pid"
  await "${KAFKA_WAIT:-90}" "kafka $version"
  echo "kafka: 127.0.0.1:$port, SASL $((port + 2)), TLS $((port + 3)), process $(cat "$dir/pid"), in $dir"
}
