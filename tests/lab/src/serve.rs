//! `lab serve`: the stand-ins for AWS and Kubernetes alone, for a function that another program runs.

use std::{io, net::IpAddr, process::ExitCode};

use clap::Args;
use lab::Lab;
use serde_json::{Value, json};

/// Where to serve.
#[derive(Args)]
pub struct Serve {
    /// The address of this machine to listen on; a container reaches that of its bridge, such as 172.17.0.1.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    host: IpAddr,
}

impl Serve {
    /// Serves until the standard input ends.
    pub async fn run(self) -> io::Result<ExitCode> {
        let lab = Lab::start_on(self.host).await;
        println!("{}", json!(lab.variables()));
        tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
        println!("{}", Value::from(lab.kubernetes.jobs()));
        Ok(ExitCode::SUCCESS)
    }
}
