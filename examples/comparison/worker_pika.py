"""A worker for the quorum queue `orders`: four threads, delayed retries, parking, graceful stop.

A pika connection belongs to one thread, so each thread has its own. While a handler runs, its
connection sends no heartbeats: HEARTBEAT must be longer than any handler.
"""
import json
import logging
import os
import signal
import threading
import time

import pika
from pika.exceptions import AMQPError, NackError, UnroutableError

URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2f")
QUEUE, PARKED = "orders", "orders.parked"
DELAYS_MS = [int(ms) for ms in os.environ.get("DELAYS_MS", "1000,10000,60000").split(",")]
THREADS, PREFETCH, HEARTBEAT = 4, 10, 600

log = logging.getLogger("worker")
stopping = threading.Event()


class Database:
    """Stands for a client that must not be shared by threads."""

    def __init__(self, thread):
        self.file = open(f"handled.{thread}", "a", buffering=1)

    def insert(self, row):
        self.file.write(f"{row}\n")


def handle(database, body, attempt):
    order = json.loads(body)
    time.sleep(0.15)
    if attempt <= order["fails"]:
        raise ValueError(f"order {order['id']} fails")
    database.insert(order["id"])


def declare(channel):
    def quorum(name, **arguments):
        arguments = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", **arguments})

    quorum(QUEUE)
    quorum(PARKED)
    for ms in DELAYS_MS:
        quorum(f"{QUEUE}.retry.{ms}", message_ttl=ms, dead_letter_exchange="",
               dead_letter_routing_key=QUEUE, dead_letter_strategy="at-least-once",
               overflow="reject-publish")


def failures(properties):
    return (properties.headers or {}).get("x-failures", 0)


def retry_or_park(channel, method, properties, body, error):
    """Publishes a copy, and returns when the broker has confirmed it."""
    failed = failures(properties) + 1
    target = f"{QUEUE}.retry.{DELAYS_MS[failed - 1]}" if failed <= len(DELAYS_MS) else PARKED
    headers = dict(properties.headers or {})
    headers.pop("CC", None)  # The broker would route the copy to these queues, too.
    headers.setdefault("x-first-exchange", method.exchange)
    headers.setdefault("x-first-routing-key", method.routing_key)
    headers.update({"x-failures": failed, "x-last-error": repr(error)[:500]})
    properties.headers = headers
    properties.user_id = None  # The broker accepts only this connection's user.
    properties.expiration = None  # The copy would leave the retry queue early.
    properties.delivery_mode = 2
    channel.basic_publish("", target, body, properties, mandatory=True)


def process(channel, database, method, properties, body):
    try:
        handle(database, body, failures(properties) + 1)
    except BaseException as error:  # Also SystemExit, which would end the thread silently.
        log.warning("message %s failed: %r", method.delivery_tag, error)
        try:
            retry_or_park(channel, method, properties, body, error)
        except (NackError, UnroutableError) as refusal:
            log.error("the copy was refused: %r", refusal)
            stopping.wait(1)
            channel.basic_nack(method.delivery_tag, requeue=True)
            return
    channel.basic_ack(method.delivery_tag)


def consume(database):
    parameters = pika.URLParameters(URL)
    parameters.heartbeat = HEARTBEAT
    connection = pika.BlockingConnection(parameters)
    try:
        channel = connection.channel()
        declare(channel)
        channel.confirm_delivery()
        channel.basic_qos(prefetch_count=PREFETCH)
        # Once a second, the loop looks whether it should stop.
        for method, properties, body in channel.consume(QUEUE, inactivity_timeout=1):
            if stopping.is_set():
                break  # Closing the channel requeues this message.
            if method:
                process(channel, database, method, properties, body)
        if channel.is_open:
            channel.cancel()  # Requeues the prefetched messages.
    finally:
        if connection.is_open:
            connection.close()


def work(number):
    database = Database(number)
    delay = 1
    while not stopping.is_set():
        started = time.monotonic()
        try:
            consume(database)
            if not stopping.is_set():
                log.warning("the broker has cancelled the consumer")
        except AMQPError as error:
            log.warning("connection lost: %r", error)
        except Exception:
            log.exception("unexpected error")
        delay = 1 if time.monotonic() - started > 30 else min(delay * 2, 30)
        stopping.wait(delay)


def main():
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    logging.getLogger("pika").setLevel(logging.ERROR)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    threads = [threading.Thread(target=work, args=(n,), name=f"worker-{n}") for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.info("stopped")


if __name__ == "__main__":
    main()
