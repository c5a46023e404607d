//! The order of headers: AMQP's tables have them by name, and each name once.

use crate::message::Headers;

/// Most headers whose order is written: a printable character each.
const PLACES_MAX: usize = 90;
const FIRST: u8 = b'!';

/// The order of `names`, for which the sorted order does not stand: for each, its place among them sorted.
/// `apart` says which are not in the table, but in the list behind it. `None` where nothing has to be said.
pub(super) fn write(names: &[(&str, bool)]) -> Option<String> {
    // Mostly so: few headers, and of programs that sort them.
    if names.is_sorted_by(|(name, apart), (next, next_apart)| !apart && (*next_apart || name <= next)) {
        return None;
    }
    let mut sorted: Vec<usize> = (0..names.len()).collect();
    sorted.sort_by_key(|place| names.get(*place).map(|(name, apart)| (*apart, if *apart { "" } else { *name })));
    if sorted.is_sorted() || names.len() > PLACES_MAX {
        return None;
    }
    let mut order = vec![0; names.len()];
    for (place, original) in (FIRST..).zip(&sorted) {
        *order.get_mut(*original)? = place;
    }
    String::from_utf8(order).ok()
}

/// Brings the headers of the table, and those behind it, into their order. An order that does not fit is none.
pub(super) fn restore(headers: Headers, order: &str) -> Headers {
    let pairs: Vec<_> = headers.iter().collect();
    let mut taken = vec![false; pairs.len()];
    let mut ordered = Headers::with_capacity(headers.size());
    for place in order.bytes() {
        let place = usize::from(place.wrapping_sub(FIRST));
        let (Some((name, value)), Some(taken @ false)) = (pairs.get(place), taken.get_mut(place)) else {
            return headers;
        };
        *taken = true;
        ordered.append(name, value);
    }
    if ordered.len() == headers.len() { ordered } else { headers }
}
