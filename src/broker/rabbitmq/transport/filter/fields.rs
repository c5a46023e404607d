//! Bytes as AMQP writes its fields, read one by one.

/// What is left of a frame's payload. Everything answers `None` where it ends too early.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next so many bytes.
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<usize> {
        usize::try_from(u32::from_be_bytes(self.take(4)?.try_into().ok()?)).ok()
    }

    /// A short string.
    pub(super) fn short(&mut self) -> Option<&'a [u8]> {
        let count = self.u8()?;
        self.take(usize::from(count))
    }

    /// A long string, or a table, an array: its bytes.
    pub(super) fn long(&mut self) -> Option<&'a [u8]> {
        let count = self.u32()?;
        self.take(count)
    }
}

/// How a value in a table goes on behind its type.
pub(super) enum Shape {
    /// So many bytes.
    Fixed(usize),
    /// Four bytes that say how many follow.
    Long,
    /// Likewise, and what follows are names and values.
    Table,
    /// Likewise, and what follows are values.
    Array,
}

/// Source: RabbitMQ, "AMQP 0-9-1 Errata", section 3, "Field types".
pub(super) fn shape(kind: u8) -> Option<Shape> {
    Some(match kind {
        b'V' => Shape::Fixed(0),
        b't' | b'b' | b'B' => Shape::Fixed(1),
        b's' | b'u' | b'U' => Shape::Fixed(2),
        b'I' | b'i' | b'f' => Shape::Fixed(4),
        b'D' => Shape::Fixed(5),
        b'l' | b'L' | b'd' | b'T' => Shape::Fixed(8),
        b'S' | b'x' => Shape::Long,
        b'F' => Shape::Table,
        b'A' => Shape::Array,
        _ => return None,
    })
}
