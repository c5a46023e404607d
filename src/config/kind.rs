//! What a single value may be: how it is read, what to say where it is wrong, how it is shown.

use std::{fmt::Display, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{Secret, words::quoted};
use crate::message::{Address, AddressError, Kind as AddressKind, NAME_BYTES_MAX};

/// A kind of value.
pub(super) struct Kind<T> {
    /// For people, as in "is not {takes}".
    pub(super) takes: String,
    /// Whether a text in quotes cannot be one.
    pub(super) bare: bool,
    /// Whether it is never shown.
    pub(super) secret: bool,
    pub(super) read: Box<Read<T>>,
    pub(super) show: fn(&T) -> String,
}

type Read<T> = dyn Fn(&str) -> Result<T, Wrong>;

/// Why a text is not of the kind.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) problem: String,
    pub(super) fix: String,
}

impl Wrong {
    pub(super) fn new(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { problem: problem.into(), fix: fix.into() }
    }
}

fn not(text: &str, takes: &str) -> String {
    format!("{} is not {takes}", quoted(text))
}

pub(super) fn flag() -> Kind<bool> {
    Kind {
        takes: "true or false".to_owned(),
        bare: true,
        secret: false,
        read: Box::new(|text| match text {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            _ => {
                let fix = match text.to_ascii_lowercase().as_str() {
                    "yes" | "on" | "y" | "1" => "write true",
                    "no" | "off" | "n" | "0" => "write false",
                    _ => "write true or false",
                };
                Err(Wrong::new(not(text, "true or false"), fix))
            }
        }),
        show: ToString::to_string,
    }
}

/// Numbers from 1 to `u64`'s end are said as "at least".
fn said<N: Display>(range: &RangeInclusive<N>, largest: bool) -> String {
    if largest { format!("at least {}", range.start()) } else { format!("{} to {}", range.start(), range.end()) }
}

/// What all whole numbers have in common; `other` reads what is not digits.
fn whole(
    text: &str,
    range: &RangeInclusive<u64>,
    takes: &str,
    other: impl Fn(&str) -> Result<u64, Wrong>,
) -> Result<u64, Wrong> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let number = if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too long for a number is too large for any range; below 0 is too small for any.
        if text.starts_with('-') {
            return Err(Wrong::new(
                format!("{} is too small", quoted(text).trim_matches('"')),
                format!("write {takes}"),
            ));
        }
        digits.parse().unwrap_or(u64::MAX)
    } else {
        other(text)?
    };
    if range.contains(&number) {
        Ok(number)
    } else {
        let side = if number < *range.start() { "too small" } else { "too large" };
        Err(Wrong::new(format!("{} is {side}", quoted(text).trim_matches('"')), format!("write {takes}")))
    }
}

pub(super) fn integer<N>(range: RangeInclusive<N>) -> Kind<N>
where
    N: Copy + Display + TryFrom<u64> + TryInto<u64> + PartialEq + 'static,
{
    let wide = |number: N| number.try_into().unwrap_or(u64::MAX);
    let range = wide(*range.start())..=wide(*range.end());
    let bounds = said(&range, *range.end() >= u64::from(u32::MAX));
    let takes = format!("a whole number, {bounds}");
    Kind {
        takes: takes.clone(),
        bare: true,
        secret: false,
        read: Box::new(move |text| {
            let number = whole(text, &range, &takes, |text| {
                Err(Wrong::new(not(text, "a whole number"), format!("write digits only; {bounds}")))
            })?;
            N::try_from(number).map_err(|_| Wrong::new(format!("{text} is too large"), format!("write {takes}")))
        }),
        show: ToString::to_string,
    }
}

/// A time in milliseconds; the key's name ends in `_ms`.
pub(super) fn millis(range: RangeInclusive<u64>) -> Kind<Duration> {
    let bounds = said(&range, *range.end() == u64::MAX);
    let takes = format!("milliseconds, {bounds}");
    Kind {
        takes: takes.clone(),
        bare: true,
        secret: false,
        read: Box::new(move |text| {
            whole(text, &range, &takes, |text| {
                let fix = match milliseconds(text) {
                    Some(number) => format!("write milliseconds: {number}"),
                    None => format!("write a whole number of milliseconds, {bounds}"),
                };
                Err(Wrong::new(not(text, "a whole number of milliseconds"), fix))
            })
            .map(Duration::from_millis)
        }),
        show: |time| time.as_millis().to_string(),
    }
}

/// A time with its unit, `30s` or `500ms`, as other systems' configurations have it; a number alone is milliseconds, as
/// everywhere here. For keys that do not end in `_ms`.
#[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
pub(super) fn time(range: RangeInclusive<u64>) -> Kind<Duration> {
    let takes = format!("a time (30s, 500ms), {} to {}", time_text(*range.start()), time_text(*range.end()));
    Kind {
        takes: takes.clone(),
        bare: false,
        secret: false,
        read: Box::new(move |text| {
            let number = whole(text, &range, &takes, |text| {
                milliseconds(text)
                    .ok_or_else(|| Wrong::new(not(text, "a time"), "write a number with a unit: 500ms, 30s, 5m, 1h"))
            })?;
            Ok(Duration::from_millis(number))
        }),
        show: |time| time_text(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// In the largest unit up to hours that leaves nothing over.
#[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
fn time_text(milliseconds: u64) -> String {
    [("h", 3_600_000), ("m", 60_000), ("s", 1000)]
        .into_iter()
        .find(|(_, unit)| milliseconds > 0 && milliseconds.is_multiple_of(*unit))
        .map_or_else(|| format!("{milliseconds}ms"), |(letter, unit)| format!("{}{letter}", milliseconds / unit))
}

/// The milliseconds that somebody means by `10s`, `5 min` or `1.5h`.
fn milliseconds(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let number: f64 = number.trim().parse().ok()?;
    let factor = match unit {
        "ms" => 1.0,
        "s" | "sec" | "seconds" => 1e3,
        "m" | "min" | "minutes" => 6e4,
        "h" | "hours" => 3.6e6,
        "d" | "days" => 8.64e7,
        _ => return None,
    };
    let product = number * factor;
    // In this range the conversion is exact enough, and cannot wrap.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked on this line")]
    (0.0..1e15).contains(&product).then_some(product as u64)
}

/// A size in bytes: an integer, or `64 MiB`. The key's name has `_bytes`.
pub(super) fn bytes<N>(range: RangeInclusive<u64>) -> Kind<N>
where
    N: Copy + TryFrom<u64> + TryInto<u64> + 'static,
{
    let start = size_text(*range.start());
    let bounds = if *range.end() == u64::MAX {
        format!("at least {start}")
    } else {
        format!("{start} to {}", size_text(*range.end()))
    };
    let takes = format!("bytes (65536 or 64 KiB), {bounds}");
    Kind {
        takes: takes.clone(),
        bare: false,
        secret: false,
        read: Box::new(move |text| {
            let number = whole(text, &range, &takes, |text| {
                size(text).ok_or_else(|| {
                    Wrong::new(
                        not(text, "a size in bytes"),
                        "write bytes, or a whole number with a unit: 64 KiB, 8 MiB, 1 GiB, 2 TiB",
                    )
                })
            })?;
            N::try_from(number).map_err(|_| Wrong::new(format!("{text} is too large"), format!("write {takes}")))
        }),
        show: |size| size_text((*size).try_into().unwrap_or(u64::MAX)),
    }
}

const UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("KB", 1000),
    ("B", 1),
];

fn size(text: &str) -> Option<u64> {
    UNITS
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit)?.trim_end().parse::<u64>().ok()?.checked_mul(*factor))
}

/// As people write it and as it is read again: in the largest binary unit that leaves nothing over.
fn size_text(bytes: u64) -> String {
    UNITS
        .iter()
        .filter(|(unit, _)| unit.ends_with("iB"))
        .find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
        .map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{} {unit}", bytes / factor))
}

pub(super) fn number(range: RangeInclusive<f64>) -> Kind<f64> {
    let takes = format!("a number, {}", said(&range, false));
    Kind {
        takes: takes.clone(),
        bare: true,
        secret: false,
        read: Box::new(move |text| {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
            match number {
                Some(number) if range.contains(&number) => Ok(number),
                Some(_) => Err(Wrong::new(format!("{text} is out of range"), format!("write {takes}"))),
                None => Err(Wrong::new(not(text, "a number"), format!("write {takes}"))),
            }
        }),
        show: ToString::to_string,
    }
}

/// One of few words.
pub(super) fn choice<T: Copy + PartialEq + 'static>(
    words: &'static [(&'static str, T)],
    show: fn(&T) -> String,
) -> Kind<T> {
    let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    let takes = match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.join(""),
    };
    Kind {
        takes: takes.clone(),
        bare: false,
        secret: false,
        read: Box::new(move |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                let fix = match super::words::nearest(text, names.iter().copied()) {
                    Some(word) => format!("did you mean {word}?"),
                    None => format!("write {takes}"),
                };
                Wrong::new(not(text, &takes), fix)
            })
        }),
        show,
    }
}

/// Anything that is read by a function of its own.
pub(super) fn parsed<T: 'static>(
    takes: &str,
    read: impl Fn(&str) -> Result<T, Wrong> + 'static,
    show: fn(&T) -> String,
) -> Kind<T> {
    Kind { takes: takes.to_owned(), bare: false, secret: false, read: Box::new(read), show }
}

pub(super) fn text() -> Kind<String> {
    parsed("text", |text| Ok(text.to_owned()), Clone::clone)
}

/// A name that is a label in metrics and part of file names.
pub(super) fn name() -> Kind<String> {
    parsed("a name", |text| if is_name(text) { Ok(text.to_owned()) } else { Err(bad_name(text)) }, Clone::clone)
}

/// Longest name of a route or plugin, in bytes.
pub(super) const LABEL_BYTES_MAX: usize = 64;

pub(super) fn is_name(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

pub(super) fn bad_name(text: &str) -> Wrong {
    Wrong::new(
        not(text, "a name"),
        format!("begin with a letter or digit; 1 to {LABEL_BYTES_MAX} letters, digits, '.', '_' and '-'"),
    )
}

pub(super) fn path() -> Kind<PathBuf> {
    let read = |text: &str| {
        if text.is_empty() || text.contains('\0') {
            return Err(Wrong::new(not(text, "a path"), "write a path; it is relative to the working directory"));
        }
        Ok(PathBuf::from(text))
    };
    parsed("a path", read, |path| path.display().to_string())
}

/// What a caller must bring in an HTTP header. Source of the characters: RFC 6750, section 2.1, taken widely.
pub(super) fn token() -> Kind<Secret> {
    let read = |text: &str| {
        if text.is_empty() {
            return Err(Wrong::new("the token is empty", "give one, or leave the key out: then one is made"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Wrong::new(
                "the token has characters that an HTTP header cannot carry",
                "use printable ASCII without spaces",
            ));
        }
        Ok(Secret::new(text))
    };
    Kind { secret: true, ..parsed("text", read, |_| "***".to_owned()) }
}

/// The name of a queue or topic of the system whose section it stands in.
#[cfg(any(feature = "kafka", feature = "redis"))]
pub(super) fn address_name(kind: AddressKind) -> Kind<Address> {
    let place = place_name(kind);
    let read = move |text: &str| {
        let address = (place.read)(text)?;
        match &address.system {
            Some(_) => Err(Wrong::new(not(text, "a name"), format!("write the name alone: {}", address.name))),
            None => Ok(address),
        }
    };
    parsed(&format!("the name of a {kind}"), read, Address::place)
}

/// The name of a queue or topic, and of the system that has it where it is not the usual one.
pub(super) fn place_name(kind: AddressKind) -> Kind<Address> {
    let read = move |text: &str| {
        if let Some((_, name)) = text.split_once(':').filter(|(before, _)| AddressKind::of(before).is_some()) {
            return Err(Wrong::new(not(text, "a name"), format!("write the name alone: {name}")));
        }
        Address::checked(kind, text).map_err(|error| address_wrong(&error))
    };
    parsed(&format!("the name of a {kind}, or SYSTEM:NAME"), read, Address::place)
}

pub(super) fn address() -> Kind<Address> {
    parsed(
        "queue:NAME, topic:NAME or SYSTEM:NAME",
        |text| text.parse().map_err(|error| address_wrong(&error)),
        ToString::to_string,
    )
}

/// Where dead letters go: a queue by its name alone, or an address.
pub(super) fn dead_letter() -> Kind<Address> {
    let read = |text: &str| {
        let address = if text.contains(':') { text.parse() } else { Address::checked(AddressKind::Queue, text) };
        address.map_err(|error| address_wrong(&error))
    };
    parsed("the name of a queue, queue:NAME, topic:NAME or SYSTEM:NAME", read, ToString::to_string)
}

pub(super) fn address_wrong(error: &AddressError) -> Wrong {
    match error {
        AddressError::NoKind(text) => Wrong::new(
            format!("{text:?} does not say whether it is a queue or a topic"),
            match Address::checked(AddressKind::Queue, text) {
                Ok(_) => format!("write queue:{text} or topic:{text}"),
                Err(_) => "write queue:NAME or topic:NAME".to_owned(),
            },
        ),
        AddressError::BadName(text) => Wrong::new(
            format!("{text:?} is not a name for a queue or topic"),
            format!("use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' and '-'"),
        ),
        AddressError::BadSystem(text) => Wrong::new(
            format!("{text:?} is not a name for a messaging system"),
            "write one as the configuration names it, as in rabbitmq:NAME",
        ),
        AddressError::OtherKind(kind, text) => {
            Wrong::new(format!("{text:?} is not a {kind}"), format!("write SYSTEM:NAME of a {kind}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them_and_shown_so_that_they_read_back() {
        let kind = bytes::<u64>(0..=u64::MAX);
        for (text, wanted) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("64 MiB", Some(64 << 20)),
            ("64MiB", Some(64 << 20)),
            ("2 TiB", Some(2 << 40)),
            ("1 GB", Some(1_000_000_000)),
            ("5 B", Some(5)),
            ("18446744073709551615 GiB", None),
            ("MiB", None),
            ("1.5 MiB", None),
            ("-1", None),
            ("64 mib", None),
        ] {
            let got = (kind.read)(text).ok();
            assert_eq!(got, wanted, "{text}");
            if let Some(number) = got {
                assert_eq!((kind.read)(&(kind.show)(&number)).ok(), Some(number), "{text}");
            }
        }
    }

    #[cfg(any(feature = "rabbitmq", feature = "kafka", feature = "redis"))]
    #[test]
    fn times_are_read_with_their_unit_and_shown_so_that_they_read_back() {
        let kind = time(0..=3_600_000);
        for (text, wanted) in [
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("250", Some(250)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("0", Some(0)),
            ("61m", None),
            ("-1s", None),
            ("30 seconds", Some(30_000)),
            ("soon", None),
        ] {
            let got = (kind.read)(text).ok();
            assert_eq!(got, wanted.map(Duration::from_millis), "{text}");
            if let Some(time) = got {
                assert_eq!((kind.read)(&(kind.show)(&time)).ok(), Some(time), "{text}");
            }
        }
    }

    #[test]
    fn hints_turn_durations_into_milliseconds() {
        for (text, wanted) in [
            ("10s", Some(10_000)),
            ("5 min", Some(300_000)),
            ("1.5h", Some(5_400_000)),
            ("soon", None),
            ("s", None),
            ("1e300d", None),
        ] {
            assert_eq!(milliseconds(text), wanted, "{text}");
        }
    }
}
