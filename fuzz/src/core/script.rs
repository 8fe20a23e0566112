//! Reads an input as the steps of a connection's life.

use super::broker;
use super::driver::Driver;
use super::log_lines;

/// The first byte of an input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings(u8);

impl Settings {
    /// Whether the handshake is over when the script begins.
    pub(super) fn is_open(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether channels and consumers exist, and calls and messages wait for answers.
    fn has_channels(self) -> bool {
        self.0 & 2 != 0
    }

    /// Whether to play the script again with the input in pieces of one byte.
    pub(super) fn is_compared(self) -> bool {
        self.0 & 4 != 0
    }

    fn is_logged(self) -> bool {
        self.0 & 8 != 0
    }

    pub(super) fn has_small_frames(self) -> bool {
        self.0 & 16 != 0
    }

    pub(super) fn answers_challenges(self) -> bool {
        self.0 & 32 != 0
    }

    pub(super) fn has_heartbeats(self) -> bool {
        self.0 & 64 != 0
    }

    pub(super) fn has_large_messages(self) -> bool {
        self.0 & 128 != 0
    }
}

/// The rest of an input. Zeros follow its end.
pub(super) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(super) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    pub(super) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Plays the script. If the settings say so, plays it again byte by byte: how the input is cut must
/// make no difference.
pub(super) fn play(input: &[u8]) {
    let Some((&settings, steps)) = input.split_first() else {
        return;
    };
    let settings = Settings(settings);
    log_lines::check(settings.is_logged());
    let whole = play_in_pieces(settings, steps, None);
    if settings.is_compared() {
        let bytewise = play_in_pieces(settings, steps, Some(1));
        assert_eq!(bytewise, whole, "byte by byte, and in the script's pieces");
    }
}

/// Returns what the program saw, if that is compared.
fn play_in_pieces(settings: Settings, steps: &[u8], piece: Option<usize>) -> Option<Vec<String>> {
    let mut driver = Driver::new(settings, piece);
    if settings.is_open() {
        driver.receive(&broker::handshake(settings));
    }
    if settings.has_channels() {
        driver.open_everything();
    }
    let mut script = Script(steps);
    while !script.0.is_empty() {
        step(&mut driver, &mut script);
        driver.check_memory(steps.len());
    }
    driver.finish()
}

fn step(driver: &mut Driver, script: &mut Script<'_>) {
    let step = script.byte();
    match step % 16 {
        0 => {
            let count = script.byte();
            driver.receive(script.bytes(count.into()));
        }
        1..=5 => driver.receive(&broker::frames(step % 16, script)),
        6 => driver.handles.open(script.byte()),
        7 => driver.handles.call(script.byte(), script.byte()),
        8 => driver.handles.consume(script.byte(), script.byte()),
        9 => driver.handles.cancel(script.byte()),
        10 => driver.handles.publish(script.byte(), script.byte()),
        11 => driver.handles.close_channel(script.byte()),
        12 => driver.take_commands(),
        13 => driver.pass(script.byte()),
        14 => driver.set_piece(script.byte()),
        _ => end(driver, script.byte()),
    }
}

fn end(driver: &mut Driver, how: u8) {
    match how {
        0 => driver.handles.close(),
        1 => driver.abort(),
        2 => driver.end_with_an_error(),
        3 => driver.socket_closed(),
        _ => driver.shrink(),
    }
}
