# A worker for the quorum queue `orders`: four threads, delayed retries, parking, graceful stop.
#
# A Bunny channel must not be shared by threads that publish, so each thread has its own channel,
# with a consumer pool of one thread. Bunny recovers the connection, the channels and the consumers.
require "bunny"
require "json"
require "logger"

URL = ENV.fetch("AMQP_URL", "amqp://guest:guest@localhost:5672/%2f")
QUEUE, PARKED = "orders", "orders.parked"
DELAYS_MS = ENV.fetch("DELAYS_MS", "1000,10000,60000").split(",").map(&:to_i)
THREADS, PREFETCH = 4, 10
LOG = Logger.new($stderr, level: Logger::INFO)

# Stands for a client that must not be shared by threads.
class Database
  def initialize(thread)
    @file = File.open("handled.#{thread}", "a").tap { |file| file.sync = true }
  end

  def insert(row)
    @file.puts(row)
  end
end

def handle(database, body, attempt)
  order = JSON.parse(body)
  sleep 0.15
  raise "order #{order["id"]} fails" if attempt <= order["fails"]

  database.insert(order["id"])
end

class Worker
  class NotConfirmed < StandardError; end

  def initialize(connection, number, stop)
    @database, @stop = Database.new(number), stop
    @channel = connection.create_channel(nil, 1)
    @channel.on_error { |_, close| stop << "channel closed: #{close.reply_text}" }
    @channel.confirm_select
    @channel.prefetch(PREFETCH)
    @exchange = @channel.default_exchange
    @exchange.on_return { |info, _, _| @returned = info.reply_text }
    @idle = Queue.new << true # Holds a token while no handler runs.
  end

  def start
    queue = declare
    cancelled = ->(_) { @stop << "the broker has cancelled the consumer" }
    options = { manual_ack: true, on_cancellation: cancelled }
    @consumer = queue.subscribe(options) do |delivery, properties, body|
      next if @stopping # Closing the channel requeues the message.

      @idle.pop
      begin
        process(delivery, properties, body)
      ensure
        @idle << true # Also if Bunny kills this thread because the connection was lost.
      end
    end
  end

  def stop
    @stopping = true
    @consumer.cancel
    @idle.pop
    @channel.close
  rescue Bunny::Exception => error # The connection is lost: the broker requeues the messages.
    LOG.warn("stopping: #{error.inspect}")
  end

  private

  def declare
    quorum(PARKED)
    DELAYS_MS.each do |ms|
      quorum("#{QUEUE}.retry.#{ms}", "x-message-ttl" => ms, "x-dead-letter-exchange" => "",
             "x-dead-letter-routing-key" => QUEUE, "x-dead-letter-strategy" => "at-least-once",
             "x-overflow" => "reject-publish")
    end
    quorum(QUEUE)
  end

  def quorum(name, arguments = {})
    @channel.queue(name, durable: true, arguments: { "x-queue-type" => "quorum" }.merge(arguments))
  end

  def process(delivery, properties, body)
    failed = (properties.headers || {}).fetch("x-failures", 0)
    begin
      handle(@database, body, failed + 1)
    rescue Exception => error # Bunny's pool survives only a StandardError.
      LOG.warn("message #{delivery.delivery_tag.to_i} failed: #{error.inspect}")
      retry_or_park(delivery, properties, body, error, failed + 1)
    end
    # Unlike `ack`, `basic_ack` ignores a tag from before a recovery.
    @channel.basic_ack(delivery.delivery_tag, false)
  rescue NotConfirmed => error
    LOG.error("the copy was refused: #{error.message}")
    sleep 1
    @channel.basic_nack(delivery.delivery_tag, false, true)
  rescue StandardError => error # The connection was lost: the broker redelivers the message.
    LOG.warn("not acknowledged: #{error.inspect}")
  end

  # Publishes a copy, and returns when the broker has confirmed it.
  def retry_or_park(delivery, properties, body, error, failed)
    target = failed <= DELAYS_MS.size ? "#{QUEUE}.retry.#{DELAYS_MS[failed - 1]}" : PARKED
    headers = { "x-first-exchange" => delivery.exchange,
                "x-first-routing-key" => delivery.routing_key }
    headers.merge!(properties.headers || {})
    headers.delete("CC") # The broker would route the copy to these queues, too.
    headers.merge!("x-failures" => failed, "x-last-error" => error.inspect[0, 500])
    options = properties.to_hash.merge(routing_key: target, headers: headers, delivery_mode: 2,
                                       mandatory: true)
    options.delete(:user_id) # The broker accepts only this connection's user.
    options.delete(:expiration) # The copy would leave the retry queue early.
    @returned = nil
    @exchange.publish(body, options)
    confirmed = @channel.wait_for_confirms
    raise NotConfirmed, "nacked" unless confirmed
    raise NotConfirmed, @returned if @returned
  end
end

stop = Queue.new
%w[TERM INT].each { |signal| trap(signal) { stop << nil } }
connection = Bunny.new(URL, logger: LOG, network_recovery_interval: 1)
begin
  connection.start
rescue Bunny::TCPConnectionFailed => error # Recovery begins after the first connection.
  LOG.warn(error.message)
  sleep 1
  retry
end
workers = Array.new(THREADS) { |number| Worker.new(connection, number, stop) }
workers.each(&:start)
reason = stop.pop
LOG.info("stopping #{reason}")
workers.each(&:stop)
connection.close if connection.open?
exit(reason ? 1 : 0)
