#!/bin/sh
# Keeps policies of others (message-ttl, expires, max-length, dead-letter-exchange, delivery-limit)
# from the listener's queues: of all policies that match a queue RabbitMQ follows only the one of
# the highest priority. For another pool or virtual host, `k2hr3-osnl check` prints the line to use.
set -eu
rabbitmqctl set_policy --priority 10 --apply-to queues k2hr3_osnl '^k2hr3_osnl' '{"overflow":"reject-publish"}'
