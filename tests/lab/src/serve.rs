//! `lab serve`: the stand-ins for AWS, Kubernetes and Buildkite alone, for a function that another program runs.

use std::{error::Error, net::IpAddr, path::PathBuf, process::ExitCode};

use clap::Args;
use lab::{Event, Lab, buildkite::CLUSTER};
use serde_json::{Value, json};

/// Where to serve.
#[derive(Args)]
pub struct Serve {
    /// The address of this machine to listen on; a container reaches that of its bridge, such as 172.17.0.1.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    host: IpAddr,
    /// An event whose job waits at Buildkite; may be given several times.
    #[arg(long, value_name = "FILE")]
    event: Vec<PathBuf>,
}

impl Serve {
    /// Serves until the standard input ends.
    pub async fn run(self) -> Result<ExitCode, Box<dyn Error>> {
        let lab = Lab::start_on(self.host).await;
        for path in self.event {
            let (_, event) = Event::read(&path)?;
            lab.buildkite.lock().schedule(&event, CLUSTER);
        }
        println!("{}", json!(lab.variables()));
        tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
        println!("{}", Value::from(lab.kubernetes.jobs()));
        Ok(ExitCode::SUCCESS)
    }
}
