use super::*;
use crate::error::ErrorKind;

const SECOND: Duration = Duration::from_secs(1);

fn with_heartbeat(seconds: u16) -> Scenario {
    Scenario::opened_with(config(), &tune(0, 0, seconds))
}

fn receive_heartbeat(scenario: &mut Scenario) {
    scenario.receive_bytes(b"\x08\0\0\0\0\0\0\xce");
}

#[test]
fn a_heartbeat_is_sent_after_half_an_interval_without_output() {
    let mut scenario = with_heartbeat(10);
    assert_eq!(scenario.core.deadline(), Some(scenario.now + 5 * SECOND));
    scenario.pass(5 * SECOND - Duration::from_nanos(1));
    assert_eq!(scenario.sent(), [""; 0]);
    scenario.pass(Duration::from_nanos(1));
    assert_eq!(scenario.sent(), ["0 Heartbeat"]);

    // Any other output postpones the heartbeat.
    scenario.pass(4 * SECOND);
    scenario.core.wrote(scenario.now);
    scenario.pass(4 * SECOND);
    assert_eq!(scenario.sent(), [""; 0]);
    assert_eq!(scenario.core.deadline(), Some(scenario.now + SECOND));
}

#[test]
fn the_peer_is_dead_after_two_intervals_without_a_byte() {
    let mut scenario = with_heartbeat(10);
    scenario.pass(19 * SECOND);
    receive_heartbeat(&mut scenario);
    scenario.pass(19 * SECOND);
    assert_eq!(scenario.events(), [""; 0]);
    scenario.pass(SECOND);
    let interval = 10 * SECOND;
    assert_eq!(
        *scenario.end().kind(),
        ErrorKind::HeartbeatMissed { interval }
    );
    assert_eq!(scenario.core.deadline(), None);
}

#[test]
fn half_a_frame_is_a_sign_of_life() {
    let mut scenario = with_heartbeat(10);
    scenario.pass(19 * SECOND);
    assert_eq!(scenario.core.receive(b"\x08\0", scenario.now), 0);
    scenario.pass(19 * SECOND);
    assert_eq!(scenario.events(), [""; 0]);
}

#[test]
fn an_idle_hour_costs_two_wake_ups_an_interval() {
    let mut scenario = with_heartbeat(60);
    let end = scenario.now + 3600 * SECOND;
    let (mut wake_ups, mut sent) = (0, 0);
    let mut next_from_peer = scenario.now + 30 * SECOND;
    while scenario.now < end {
        let deadline = scenario.core.deadline().unwrap();
        if next_from_peer < deadline {
            scenario.now = next_from_peer;
            next_from_peer += 30 * SECOND;
            receive_heartbeat(&mut scenario);
            continue;
        }
        scenario.now = deadline;
        scenario.core.handle_timeout(deadline);
        wake_ups += 1;
        sent += scenario.sent().len();
    }
    assert_eq!((wake_ups, sent), (120, 120));
    assert_eq!(scenario.events(), [""; 0]);
}

#[test]
fn an_interval_of_zero_means_no_heartbeats() {
    let config = Config {
        heartbeat: 0,
        ..config()
    };
    let mut scenario = Scenario::opened_with(config, &tune(0, 0, 60));
    assert_eq!(scenario.core.deadline(), None);
    scenario.pass(100_000 * SECOND);
    assert_eq!(scenario.sent(), [""; 0]);
    assert_eq!(scenario.events(), [""; 0]);
}

#[test]
fn a_peer_whose_bytes_are_left_unread_is_not_silent() {
    let mut scenario = with_heartbeat(10);
    for _ in 0..10 {
        scenario.pass(10 * SECOND);
        scenario.core.input_waits(scenario.now);
    }
    assert_eq!(scenario.events(), [""; 0]);
    assert!(scenario.sent().len() > 9, "our heartbeats go on");
    scenario.pass(20 * SECOND);
    assert!(matches!(
        scenario.end().kind(),
        ErrorKind::HeartbeatMissed { .. }
    ));
}
