//! What depends on the version of RabbitMQ, and what this crate does about it.
//!
//! This crate is tested with RabbitMQ 3.10, 4.0 and 4.3. What this page says was measured on 3.10.8,
//! 4.0.5 and 4.3.6, single nodes with default settings. What it says about other versions and about
//! clusters comes from the release notes.
//!
//! # What each version does
//!
//! | | 3.10 | 4.0 | 4.3 |
//! | --- | --- | --- | --- |
//! | Largest message (`max_message_size`); a larger one closes the channel (406) | 128 MiB | 16 MiB | 16 MiB |
//! | Smallest [`frame_max`](crate::ConnectionOptions::frame_max) | 4096 | 4096 | 8192 (since 4.1) |
//! | [Priorities](crate::Message::priority) of quorum queues | none | two: from 5 on is the higher | 0 to 31, strictly |
//! | Default [delivery limit](#what-counts-towards-the-delivery-limit) of quorum queues | none | 20 | 20, only failures count |
//! | A message that is not acknowledged in time (`consumer_timeout`, 30 minutes) | closes the channel (406) | closes the channel (406) | classic queues and streams have no timeout; a quorum queue cancels the consumer, and closes the channel (406) after `basic_get` |
//! | [`consumer_timeout`](crate::QueueDeclareOptions::consumer_timeout) of a queue | is ignored | all types | quorum queues; other types refuse it (406) |
//! | [`consumer_timeout`](crate::ConsumeOptions::consumer_timeout) of a consumer | is ignored | is ignored | quorum queues; other types refuse it (406) |
//! | Prefetch for a whole channel ([`global`](crate::QosOptions::global)) | classic queues | classic queues | `Ok`, but for each consumer |
//! | Consumer of a quorum queue on a channel with such a prefetch | closes the connection (540) | closes the connection (540) | for each consumer |
//! | [Passive declaration](crate::Connection::queue_exists) needs | no permission | no permission | "configure", "write" or "read" (4.3.0: "configure") |
//! | A [new secret](crate::Connection::update_secret) after permissions were taken | consumers go on | consumers go on | their consumers are cancelled |
//! | Exchange kinds without a plugin, besides those of AMQP | | `x-local-random` | `x-local-random`, `x-modulus-hash` |
//! | An unknown exchange kind | closes the connection (503) | closes the channel (406) | closes the channel (406) |
//! | Wildcards `#` in one binding of a topic exchange | any number | any number | 2, else 406 (since 4.3.5) |
//! | The header `CC` in a dead-lettered message | is removed | is kept | is kept |
//! | [`redelivered`](crate::Delivery::redelivered) of a message that was rejected and dead-lettered | no | no | yes |
//! | Headers exchange: is `1` in a binding equal to `1.0` in a message? | yes | no | no |
//! | [`delivery_mode`](crate::Properties::delivery_mode) other than 1 and 2 | closes the channel (406) | arrives as it was sent | arrives as it was sent |
//! | A message to a queue that is just being deleted | is confirmed or returned | can also be nacked | can also be nacked |
//! | The header `x-death` of a message that a program publishes again | its counts go on | its counts start again at 1 | its counts start again at 1 |
//! | A mandatory answer to an [`RpcClient`](crate::RpcClient) that is gone | is returned | is returned | is confirmed (since 4.2) |
//! | `tx.commit` with a message to a queue that was deleted meanwhile | `Ok` | closes the channel (406) | closes the connection (506) |
//! | [`stream_filter`](crate::ConsumeOptions::stream_filter) | is ignored | yes (since 3.13) | yes |
//! | [`delayed_retry`](crate::QueueDeclareOptions::delayed_retry) of quorum queues | is ignored | is ignored | yes |
//! | [`leader_locator`](crate::QueueDeclareOptions::leader_locator) of a classic queue | closes the channel (406) | yes | yes |
//!
//! A broker accepts queue arguments that it does not know, and ignores them: `delayed_retry` on
//! RabbitMQ 4.0 is no error. An argument that the broker knows for another type of queue is one (406).
//!
//! Mirrored classic queues are gone since 4.0: their policies have no effect, and each queue is on
//! one node. Use [quorum queues](crate::QueueDeclareOptions::quorum). Since 4.3 a cluster declares,
//! binds and deletes only while a majority of its nodes runs.
//!
//! # What is deprecated
//!
//! An operator denies a deprecated feature with `deprecated_features.permit.NAME = false` in
//! `rabbitmq.conf`; `rabbitmqctl list_deprecated_features` lists the names. 541 closes the
//! connection, 406 the channel.
//!
//! | | `NAME` | 4.0.5 | 4.3.6 | if denied |
//! | --- | --- | --- | --- | --- |
//! | [`transient`](crate::QueueDeclareOptions::transient) queue that is not exclusive | `transient_nonexcl_queues` | permitted | permitted (the release notes say: denied) | 541 |
//! | Prefetch for a whole channel ([`global`](crate::QosOptions::global)) | `global_qos` | permitted | denied | `Ok`, but for each consumer |
//! | Argument `x-queue-master-locator` | `queue_master_locator` | permitted | denied | 541 |
//! | Argument `x-queue-version: 1` | | accepted | 406 | |
//! | [`lazy`](crate::QueueDeclareOptions::lazy) (`x-queue-mode`) | | accepted, no effect | accepted, no effect (the release notes say: refused) | |
//!
//! This crate uses none of these unless the program asks for it. An
//! [exclusive](crate::QueueDeclareOptions::exclusive) queue is transient, but never refused. The other
//! deprecated features do not concern AMQP 0-9-1.
//!
//! # What counts towards the delivery limit
//!
//! A quorum queue drops or dead-letters a message that was delivered again more often than its
//! [`delivery_limit`](crate::QueueDeclareOptions::delivery_limit). With the default of 20 a message
//! is delivered 21 times.
//!
//! | | 3.10 and 4.0 | 4.3 |
//! | --- | --- | --- |
//! | [`reject`](crate::Delivery::reject) with requeue, [`Settlement::Requeue`](crate::Settlement::Requeue) | counts | counts |
//! | [`nack`](crate::Delivery::nack) with requeue, [`basic_recover`](crate::Channel::basic_recover) | counts | does not count |
//! | Channel closed or connection lost before the acknowledgement | counts | counts |
//! | Acknowledgement too late | counts | does not count |
//! | [Unread message of a dropped consumer](crate::Consumer#unread-messages-and-the-delivery-limit) | counts | counts only if the channel closes soon |
//! | Header for [`delivery_count`](crate::Delivery::delivery_count) | redeliveries | failures |
//! | Header for [`acquired_count`](crate::Delivery::acquired_count) | none | redeliveries |
//! | Count of a message that is dead-lettered into another quorum queue | starts again | goes on |
//! | [`no_delivery_limit`](crate::QueueDeclareOptions::no_delivery_limit) | 3.10: dropped instead of a first redelivery. 4.0: no limit | no limit |
//!
//! On 4.3, a message that has reached a limit of 20 and comes into another quorum queue with that
//! limit is dropped there after one more failure. Collect such messages in a classic queue, or in a
//! quorum queue with a higher limit.
//!
//! # Streams
//!
//! - A consumer needs a prefetch ([`basic_qos`](crate::Channel::basic_qos)), or it is refused (406),
//!   and acknowledgements: [`no_ack`](crate::ConsumeOptions::no_ack) closes the connection (540).
//! - A stream takes no message back. RabbitMQ 3.10 closes the connection for a nack or reject (540),
//!   later versions take it for an acknowledgement. This crate sends neither:
//!   [`Delivery::nack`](crate::Delivery::nack) fails, and [`Workers`](crate::Workers) acknowledge.
//! - A stream that is deleted and declared again counts from offset 0 again. A consumer whose recovery
//!   finds that the stream is missing begins at 0. If another program has declared it again before
//!   that, the consumer asks for its old offset, and the broker sends nothing until the new stream is
//!   that long: then cancel it and consume from [`StreamOffset::First`](crate::StreamOffset::First).
//!   The same holds for [`Workers`](crate::Workers).
//! - While a node of RabbitMQ 3.10 or 4.0 starts, the broker says of a stream that is there that its
//!   node "is down or inaccessible" (404). A consumer then goes on where it was.
//! - A [filter](crate::ConsumeOptions::stream_filter) works on chunks, the units in which the broker stores messages. The
//!   consumer gets all messages of a chunk in which one matches, and must filter again. In a test
//!   with 1000 messages of each of two values, published in one go, a filter for one of them also let
//!   through 793 to 996 messages of the other.
//!
//! # What this crate does about it
//!
//! | | |
//! | --- | --- |
//! | Late acknowledgement on 4.3 | Gives unread messages back, sends no late answer, and reports [`ConsumerCancelled`](crate::ErrorKind::ConsumerCancelled). [`Workers`](crate::Workers) consume again. |
//! | Failures and the delivery limit | [`Workers`](crate::Workers) requeue with `basic.reject`, which counts on every version. Unread messages go back with `basic.nack`, which does not count since 4.3. |
//! | Node without a majority on 4.3 | A recovery goes on without an exchange, queue or binding that has no answer, and tries it again: see [`docs::recovery`](super::recovery). |
//! | Denied declaration (541) | A recovery finds it and leaves it out, so that it does not cost the connection again. |
//! | `frame_max` below 8192 | The error names the reason, which the broker does not. |
//! | Message above the broker's limit | Is reported as [`ChannelClosed`](crate::ErrorKind::ChannelClosed) (406). With [`max_message_size`](crate::ConnectionOptions::max_message_size) set to the broker's limit it is not sent, and the channel stays open. |
//!
//! See <https://www.rabbitmq.com/docs/deprecated-features>,
//! <https://www.rabbitmq.com/docs/quorum-queues> and
//! <https://github.com/rabbitmq/rabbitmq-server/tree/main/release-notes>.
