//! The bell of a queue or topic: a stream of one entry that each publish replaces, and a connection that waits for that.

use std::{future::Future, pin::Pin, sync::Arc};

use redis::{Value, cmd};

use super::{
    super::{link::Made, transport},
    session::Session,
};

/// How long one wait lasts, in ms.
const BELL_MS: u64 = 5000;

/// Ends with the connection it waited over.
pub(super) type Bell = Pin<Box<dyn Future<Output = Result<Made, String>> + Send>>;

/// Waits until something happens behind `tip`, over a connection of its own.
pub(super) async fn ring(session: Arc<Session>, over: Option<Made>, tip: String) -> Result<Made, String> {
    let (client, mut driver) = match over {
        Some(over) => over,
        None => transport::connect(&session.shared.settings).await.map_err(|error| error.text)?,
    };
    let mut command = cmd("XREAD");
    command.arg("COUNT").arg(1).arg("BLOCK").arg(BELL_MS).arg("STREAMS").arg(session.place.key("bell")).arg(tip);
    loop {
        let answer = tokio::select! {
            answer = client.ask(&command) => answer,
            () = &mut driver => return Err("the connection was lost".to_owned()),
        };
        match answer {
            Ok(Value::Nil) => {}
            Ok(_) => return Ok((client, driver)),
            Err(error) => return Err(error.to_string()),
        }
    }
}
