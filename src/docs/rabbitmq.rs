//! What depends on the version of RabbitMQ, and what this crate does about it.
//!
//! This crate is tested with RabbitMQ 3.10, 4.0 and 4.3. The facts on this page were measured on
//! 3.10.8, 4.0.5 and 4.3.6, single nodes with default settings. Statements about other versions and
//! about clusters come from the release notes.
//!
//! # What each version does
//!
//! A number in a cell is the reply code of an error. 406 closes the channel, other codes close the
//! connection.
//!
//! | | 3.10 | 4.0 | 4.3 |
//! | --- | --- | --- | --- |
//! | Largest message (`max_message_size`), else 406 | 128 MiB | 16 MiB | 16 MiB |
//! | Smallest [`frame_max`] | 4096 | 4096 | 8192 (since 4.1) |
//! | [Priorities] of quorum queues | none | 2 (5 and above: higher) | 0 to 31, strictly |
//! | Default [delivery limit] of quorum queues | none | 20 | 20, only failures count |
//! | Late acknowledgement | 406 | 406 | see below |
//! | [`consumer_timeout`][queue timeout] of a queue | ignored | all types | quorum, else 406 |
//! | [`consumer_timeout`][consumer timeout] of a consumer | ignored | ignored | quorum, else 406 |
//! | Channel-wide prefetch ([`global`]) | classic queues | classic queues | each consumer |
//! | Consumer of a quorum queue on such a channel | 540 | 540 | each consumer |
//! | [Passive declaration] | no permission | no permission | needs a permission |
//! | Consumers that a [new secret] does not permit | continue | continue | are cancelled |
//! | `x-local-random` exchange without a plugin | no | yes | yes |
//! | `x-modulus-hash` exchange without a plugin | no | no | yes |
//! | Unknown exchange kind | 503 | 406 | 406 |
//! | Wildcards `#` in a topic binding | any number | any number | 2, else 406 (since 4.3.5) |
//! | Header `CC` in a dead-lettered message | removed | kept | kept |
//! | [`redelivered`] of a rejected, dead-lettered message | no | no | yes |
//! | Headers exchange: does `1` in a binding match `1.0`? | yes | no | no |
//! | [`delivery_mode`] other than 1 and 2 | 406 | arrives as sent | arrives as sent |
//! | Message to a queue that is being deleted | confirmed, returned | also nacked | also nacked |
//! | Counts in `x-death` of a republished message | continue | restart at 1 | restart at 1 |
//! | Mandatory reply to a dropped [`RpcClient`] | returned | returned | confirmed (since 4.2) |
//! | `tx.commit` of a message whose queue was deleted meanwhile | `Ok` | 406 | 506 |
//! | [`stream_filter`] | ignored | yes (since 3.13) | yes |
//! | [`delayed_retry`] of quorum queues | ignored | ignored | yes |
//! | [`leader_locator`] of a classic queue | 406 | yes | yes |
//!
//! **Late acknowledgements.** The broker waits 30 minutes for an acknowledgement by default
//! (`consumer_timeout`). On 4.3, classic queues and streams have no timeout. A quorum queue cancels
//! the consumer, and closes the channel (406) if the message came from `basic_get`.
//!
//! **Channel-wide prefetch.** On 4.3 the call returns `Ok`, but the prefetch applies to each
//! consumer.
//!
//! **Passive declaration.** On 4.3 the user needs "configure", "write" or "read" for the name
//! (4.3.0: "configure").
//!
//! **New quorum queues.** On 3.10, a quorum queue that was declared some minutes or less before its
//! node is killed (SIGKILL, a power failure) can be unusable after the restart: it confirms nothing
//! and delivers nothing. Delete it and declare it again. This crate's tests write the broker's
//! tables to disk before they kill a node.
//!
//! **Acknowledgements and quorum queues.** A channel hands 32 acknowledgements to a quorum queue,
//! and keeps further ones until the queue has answered. When the channel closes, it forgets them,
//! and handled messages come again. Cancel the consumer after the last acknowledgement, before the
//! channel closes, or acknowledge many messages with one
//! [`ack_multiple`](crate::Delivery::ack_multiple). [`Workers`] do the former. Measured on 3.10 and
//! 4.3.
//!
//! A broker ignores queue arguments that it does not know: `delayed_retry` on RabbitMQ 4.0 is not
//! an error. But the broker refuses an argument that it knows only for other types of queue (406).
//!
//! Mirrored classic queues are gone since 4.0: their policies have no effect, and each queue is on
//! one node. Use [quorum queues](crate::QueueDeclareOptions::quorum). Since 4.3, a cluster can
//! declare, bind and delete only while a majority of its nodes is running.
//!
//! # What is deprecated
//!
//! An operator denies a deprecated feature with `deprecated_features.permit.NAME = false` in
//! `rabbitmq.conf`. `rabbitmqctl list_deprecated_features` lists the names. 541 closes the
//! connection, 406 the channel.
//!
//! | | `NAME` | 4.0.5 | 4.3.6 | if denied |
//! | --- | --- | --- | --- | --- |
//! | [transient][`durable`], not exclusive | `transient_nonexcl_queues` | permitted | permitted | 541 |
//! | Channel-wide prefetch ([`global`]) | `global_qos` | permitted | denied | `Ok`, see above |
//! | Argument `x-queue-master-locator` | `queue_master_locator` | permitted | denied | 541 |
//! | Argument `x-queue-version: 1` | | accepted | 406 | |
//! | [`lazy`] (`x-queue-mode`) | | no effect | no effect | |
//!
//! The release notes of 4.3 say that 4.3 denies transient queues and refuses `x-queue-mode`. In
//! fact, 4.3.6 does neither.
//!
//! This crate uses none of these features unless the program asks for them. An
//! [exclusive](crate::QueueDeclareOptions::exclusive) queue is transient, but never denied. The
//! other deprecated features do not concern AMQP 0-9-1.
//!
//! # What counts towards the delivery limit
//!
//! A quorum queue drops or dead-letters a message that it would redeliver more often than its
//! [`delivery_limit`](crate::QueueDeclareOptions::delivery_limit) allows. With the default of 20, a
//! message is delivered 21 times.
//!
//! | | 3.10 and 4.0 | 4.3 |
//! | --- | --- | --- |
//! | [`reject`] with requeue, [`Settlement::Requeue`] | counts | counts |
//! | [`nack`] with requeue, [`basic_recover`] | counts | does not count |
//! | Channel closed or connection lost before the acknowledgement | counts | counts |
//! | Acknowledgement too late | counts | does not count |
//! | [Unread message of a dropped consumer] | counts | counts only if the channel closes soon |
//! | Header for [`delivery_count`] | redeliveries | failures |
//! | Header for [`acquired_count`] | none | redeliveries |
//! | Count of a message that is dead-lettered into another quorum queue | restarts | continues |
//! | [`no_delivery_limit`] | no limit (3.10: see below) | no limit |
//!
//! On 3.10, a queue with [`no_delivery_limit`] drops or dead-letters a message instead of
//! redelivering it even once.
//!
//! On 4.3, a message that has reached a limit of 20 keeps its count in the next quorum queue. With
//! the same limit there, one more failure drops the message. Dead-letter such messages into a
//! classic queue, or into a quorum queue with a higher limit.
//!
//! # Streams
//!
//! - A consumer needs a prefetch ([`basic_qos`](crate::Channel::basic_qos)), or the broker refuses
//!   it (406). It also needs acknowledgements: [`no_ack`](crate::ConsumeOptions::no_ack) closes the
//!   connection (540).
//! - A stream cannot requeue messages. RabbitMQ 3.10 closes the connection for a nack or reject
//!   (540); 4.0 and later treat it as an acknowledgement. This crate sends neither:
//!   [`Delivery::nack`](crate::Delivery::nack) fails, and [`Workers`] acknowledge.
//! - The offsets of a stream that is deleted and declared again restart at 0. If recovery finds the
//!   stream missing, the consumer begins at 0. If another program declares the stream again before
//!   recovery does, the consumer asks for its old offset, and the broker sends nothing until the
//!   new stream is that long. In that case, cancel the consumer and consume from
//!   [`StreamOffset::First`](crate::StreamOffset::First). The same holds for [`Workers`].
//! - While a node of RabbitMQ 3.10 or 4.0 starts, the broker says that the node of an existing
//!   stream "is down or inaccessible" (404). Recovery does not mistake this for a missing stream:
//!   the consumer resumes where it left off.
//! - A [filter][`stream_filter`] works on chunks, the units in which the broker stores messages.
//!   The consumer gets all messages of a chunk if one of them matches, and must filter again. In a
//!   test that published 1000 messages of each of two values in one go, a filter for one value also
//!   let through 793 to 996 messages of the other.
//!
//! # What this crate does about it
//!
//! - **Late acknowledgement on 4.3**: the consumer requeues its unread messages, sends no late
//!   acknowledgement, and reports [`ConsumerCancelled`](crate::ErrorKind::ConsumerCancelled).
//!   [`Workers`] consume again.
//! - **Failures and the delivery limit**: [`Workers`] requeue with `basic.reject`, which counts on
//!   every version. Unread messages are requeued with `basic.nack`, which does not count since 4.3.
//! - **Node without a majority on 4.3**: recovery skips an exchange, queue or binding that gets no
//!   reply, and retries it: see [`docs::recovery`](super::recovery).
//! - **Denied declaration (541)**: recovery finds the denied declaration and skips it, so that the
//!   broker does not close the connection for it again.
//! - **`frame_max` below 8192**: the error names the reason, although the broker does not.
//! - **Message above the broker's limit**: the broker closes the channel (406), and calls fail with
//!   [`ChannelClosed`](crate::ErrorKind::ChannelClosed). Set
//!   [`max_message_size`](crate::ConnectionOptions::max_message_size) to the broker's limit: then
//!   such a message is not sent, and the channel stays open.
//!
//! See <https://www.rabbitmq.com/docs/deprecated-features>,
//! <https://www.rabbitmq.com/docs/quorum-queues> and
//! <https://github.com/rabbitmq/rabbitmq-server/tree/main/release-notes>.
//!
//! [`RpcClient`]: crate::RpcClient
//! [`Settlement::Requeue`]: crate::Settlement::Requeue
//! [`Workers`]: crate::Workers
//! [`acquired_count`]: crate::Delivery::acquired_count
//! [`basic_recover`]: crate::Channel::basic_recover
//! [`delayed_retry`]: crate::QueueDeclareOptions::delayed_retry
//! [`delivery_count`]: crate::Delivery::delivery_count
//! [`delivery_mode`]: crate::Properties::delivery_mode
//! [`frame_max`]: crate::ConnectionOptions::frame_max
//! [`global`]: crate::QosOptions::global
//! [`lazy`]: crate::QueueDeclareOptions::lazy
//! [`leader_locator`]: crate::QueueDeclareOptions::leader_locator
//! [`nack`]: crate::Delivery::nack
//! [`no_delivery_limit`]: crate::QueueDeclareOptions::no_delivery_limit
//! [`redelivered`]: crate::Delivery::redelivered
//! [`reject`]: crate::Delivery::reject
//! [`stream_filter`]: crate::ConsumeOptions::stream_filter
//! [`durable`]: crate::QueueDeclareOptions::durable
//! [Passive declaration]: crate::Connection::queue_exists
//! [Priorities]: crate::Message::priority
//! [Unread message of a dropped consumer]: crate::Consumer#unread-messages-and-the-delivery-limit
//! [consumer timeout]: crate::ConsumeOptions::consumer_timeout
//! [delivery limit]: #what-counts-towards-the-delivery-limit
//! [new secret]: crate::Connection::update_secret
//! [queue timeout]: crate::QueueDeclareOptions::consumer_timeout
