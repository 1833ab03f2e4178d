//! `porthole info`: the hypervisor.

use porthole_abi::Features;
use porthole_uapi::{Info, System};
use serde::Serialize;

use super::{CommandError, bytes, show};

#[derive(Serialize)]
struct Report {
    abi_version: String,
    uapi_version: u32,
    features: Vec<String>,
    feature_bits: u64,
    cpus: u64,
    ram_bytes: u64,
    reserved_bytes: u64,
    pool_free_pages: u64,
    leaked_pages: u64,
}

impl From<Info> for Report {
    fn from(info: Info) -> Self {
        let features = Features::from_bits_retain(info.features);
        let name = |(name, _): (&str, Features)| name.to_lowercase().replace('_', "-");
        Self {
            abi_version: format!("{}.{}", info.abi_version >> 16, info.abi_version & 0xffff),
            uapi_version: info.uapi_version,
            features: features.iter_names().map(name).collect(),
            feature_bits: info.features,
            cpus: info.cpus,
            ram_bytes: info.ram_bytes,
            reserved_bytes: info.reserved_bytes,
            pool_free_pages: info.pool_free_pages,
            leaked_pages: info.leaked_pages,
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let features = if self.features.is_empty() {
            "none".to_owned()
        } else {
            self.features.join(" ")
        };
        format!(
            "ABI version      {}\n\
             features         {features}\n\
             CPUs             {}\n\
             memory           {} ({} bytes)\n\
             reserved_bytes   {} ({}, kept from the host)\n\
             pool_free_pages  {}\n\
             leaked_pages     {}\n",
            self.abi_version,
            self.cpus,
            bytes(self.ram_bytes),
            self.ram_bytes,
            self.reserved_bytes,
            bytes(self.reserved_bytes),
            self.pool_free_pages,
            self.leaked_pages,
        )
    }
}

pub(super) fn info(system: &System, json: bool) -> Result<u8, CommandError> {
    show(&Report::from(system.info()?), json, Report::text)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_version_features_and_reserved_bytes() {
        let report = Report::from(Info {
            abi_version: 0x0001_0002,
            features: (Features::DMA_ISOLATED | Features::LOG_UART).bits(),
            cpus: 4,
            reserved_bytes: 5 << 20,
            ram_bytes: 2 << 30,
            ..Info::default()
        });
        let text = report.text();
        for part in [
            "1.2",
            "dma-isolated log-uart",
            "2.0 GiB",
            "5242880 (5.0 MiB",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["reserved_bytes"], 5 << 20);
        assert_eq!(json["features"][0], "dma-isolated");
    }
}
