#!/bin/sh
# Makes topics that are missing, and changes nothing that is there. Printed by
#   helixmq topology export --format kafka-init
# Kafka's bin/ must be in PATH. BOOTSTRAP_SERVERS says where Kafka is, COMMAND_CONFIG is a file with what its clients need to
# be let in (security.protocol, sasl.jaas.config, ...).
set -eu
: "${BOOTSTRAP_SERVERS:=localhost:9092}"

# topic NAME PARTITIONS OPTIONS...
topic() {
  name=$1 partitions=$2
  shift 2
  kafka-topics.sh --bootstrap-server "$BOOTSTRAP_SERVERS" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} \
    --create --if-not-exists --topic "$name" --partitions "$partitions" "$@"
}

topic helixagent.dlq.events 3 --config retention.ms=2592000000
topic helixagent.dlq.tasks 3 --config retention.ms=2592000000
topic helixagent.events.audit 6 --config retention.ms=7776000000
topic helixagent.events.debate.rounds 6 --config retention.ms=604800000
topic helixagent.events.errors 3 --config retention.ms=2592000000
topic helixagent.events.llm.responses 6 --config retention.ms=604800000
topic helixagent.events.metrics 3 --config retention.ms=86400000
topic helixagent.events.provider.health 3 --config retention.ms=86400000
topic helixagent.events.verification.results 3 --config retention.ms=2592000000
topic helixagent.retry.events 3 --config retention.ms=604800000
topic helixagent.stream.sse 6 --config retention.ms=3600000
topic helixagent.stream.tokens 12 --config retention.ms=3600000
topic helixagent.stream.websocket 6 --config retention.ms=3600000
topic llmsverifier.events.model 3 --config retention.ms=604800000
topic llmsverifier.events.provider 3 --config retention.ms=604800000
topic llmsverifier.events.system 3 --config retention.ms=604800000
topic llmsverifier.events.team 3 --config retention.ms=604800000
topic llmsverifier.events.verification 3 --config retention.ms=604800000
