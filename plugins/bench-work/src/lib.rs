//! The work that the JSON benchmark does for one message: read an order of about 300 bytes, price it, write a receipt.
//!
//! It knows nothing of messages or components, so that `bench-json` runs it inside a sandbox and the engine runs the
//! very same code as a native handler. What differs between the two figures is then the sandbox alone.
//! Start at [`price_order`].
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// What [`sample`] writes and [`price_order`] reads. Text is borrowed from the payload where it holds no escapes.
#[derive(Debug, Deserialize)]
struct Order<'a> {
    order_id: u64,
    #[serde(borrow)]
    customer: &'a str,
    #[serde(borrow)]
    region: &'a str,
    #[serde(borrow)]
    currency: &'a str,
    created_at_ms: u64,
    express: bool,
    discount_percent: u32,
    #[serde(borrow)]
    items: Vec<Item<'a>>,
}

#[derive(Debug, Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    sku: &'a str,
    quantity: u32,
    unit_cents: u32,
}

#[derive(Debug, Serialize)]
struct Receipt<'a> {
    order_id: u64,
    customer: &'a str,
    region: &'a str,
    currency: &'a str,
    created_at_ms: u64,
    quantity: u64,
    dearest_sku: &'a str,
    subtotal_cents: u64,
    discount_cents: u64,
    shipping_cents: u64,
    total_cents: u64,
    status: &'static str,
}

/// Reads one order, computes its price and returns the receipt as JSON.
///
/// # Errors
/// The payload is not an order: not JSON, a field missing or of another type. The text says where.
pub fn price_order(payload: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let order: Order<'_> = serde_json::from_slice(payload)?;
    let mut quantity = 0_u64;
    let mut subtotal_cents = 0_u64;
    let mut dearest = ("", 0_u32);
    for item in &order.items {
        quantity = quantity.saturating_add(u64::from(item.quantity));
        subtotal_cents = subtotal_cents.saturating_add(u64::from(item.quantity) * u64::from(item.unit_cents));
        if item.unit_cents > dearest.1 {
            dearest = (item.sku, item.unit_cents);
        }
    }
    let discount_cents = subtotal_cents / 100 * u64::from(order.discount_percent.min(100));
    let shipping_cents = if order.express { 1_500 } else { 500 };
    let mut receipt = Vec::with_capacity(384);
    serde_json::to_writer(
        &mut receipt,
        &Receipt {
            order_id: order.order_id,
            customer: order.customer,
            region: order.region,
            currency: order.currency,
            created_at_ms: order.created_at_ms,
            quantity,
            dearest_sku: dearest.0,
            subtotal_cents,
            discount_cents,
            shipping_cents,
            total_cents: (subtotal_cents - discount_cents).saturating_add(shipping_cents),
            status: "priced",
        },
    )?;
    Ok(receipt)
}

/// The payload of the `number`-th message of a benchmark: an order of 300 bytes, give or take the digits of `number`.
#[must_use]
pub fn sample(number: u64) -> Vec<u8> {
    format!(
        concat!(
            r#"{{"order_id":{},"customer":"c-{:06}","region":"eu-central","currency":"EUR","#,
            r#""created_at_ms":1767225600000,"express":{},"discount_percent":{},"items":["#,
            r#"{{"sku":"HX-1001-A","quantity":2,"unit_cents":1999}},"#,
            r#"{{"sku":"HX-2044-C","quantity":{},"unit_cents":450}},"#,
            r#"{{"sku":"HX-7310-B","quantity":1,"unit_cents":12900}}]}}"#
        ),
        number,
        number % 1_000_000,
        number.is_multiple_of(2),
        number % 20,
        number % 9 + 1,
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_an_order() {
        let receipt: serde_json::Value = serde_json::from_slice(&price_order(&sample(10)).unwrap()).unwrap();
        // 2 x 1999 + 2 x 450 + 1 x 12900 = 17798, 10 % off the whole hundreds, express.
        assert_eq!(receipt["subtotal_cents"], 17_798);
        assert_eq!(receipt["discount_cents"], 1_770);
        assert_eq!(receipt["total_cents"], 17_798 - 1_770 + 1_500);
        assert_eq!(receipt["dearest_sku"], "HX-7310-B");
        assert_eq!(receipt["order_id"], 10);
        assert_eq!(receipt["quantity"], 5);
    }

    #[test]
    fn samples_are_about_300_bytes() {
        for number in [0, 1, 999, 1_000_000, 10_000_000_000] {
            assert!((280..=320).contains(&sample(number).len()), "{}", sample(number).len());
        }
    }

    #[test]
    fn refuses_what_is_not_an_order() {
        for payload in ["", "{}", "[1]", r#"{"order_id":"seven"}"#] {
            assert!(price_order(payload.as_bytes()).is_err(), "{payload}");
        }
    }
}
