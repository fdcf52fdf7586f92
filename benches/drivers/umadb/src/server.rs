//! UmaDB's own server, as its crate gives it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    umadb::start_server_with_cli_options(umadb::parse_cli_options(std::env::args())?)
}
