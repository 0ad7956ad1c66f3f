//! Numbers that go up, and the closed list of reasons a packet goes no further.

macro_rules! drops {
    ($($name:ident),* $(,)?) => {
        /// As `ravenvpn.dataplane.contract.Drop`, which explains each; values are the same.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Drop { $($name),* }

        impl Drop {
            pub const ALL: &'static [Drop] = &[$(Drop::$name),*];
        }
    };
}

drops!(
    NotIp,
    BadOffload,
    NoRoute,
    NoEndpoint,
    StagedOverflow,
    StagedExpired,
    SendFailed,
    Malformed,
    UnknownIndex,
    ExpiredKeypair,
    BadTag,
    Replayed,
    MalformedInner,
    SourceNotAccepted,
    CongestionUnmarkable,
    TunWriteFailed,
    HandshakeQueueFull,
    SocketOverflow,
    NoTun,
);

/// Offloads, as `ravenvpn.dataplane.contract.Offloads`; here what is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    pub tun_tso: bool,
    pub tun_uso: bool,
    pub tun_gro: bool,
    pub tun_gro_udp: bool,
    pub tun_batch: bool,
    pub udp_gso: bool,
    pub udp_gro: bool,
}

impl Offloads {
    /// No offload at all.
    pub const NONE: Self = Self {
        tun_tso: false,
        tun_uso: false,
        tun_gro: false,
        tun_gro_udp: false,
        tun_batch: false,
        udp_gso: false,
        udp_gro: false,
    };

    /// These offloads, except those in `refused`.
    #[must_use]
    pub fn except(self, refused: Self) -> Self {
        Self {
            tun_tso: self.tun_tso && !refused.tun_tso,
            tun_uso: self.tun_uso && !refused.tun_uso,
            tun_gro: self.tun_gro && !refused.tun_gro,
            tun_gro_udp: self.tun_gro_udp && !refused.tun_gro_udp,
            tun_batch: self.tun_batch && !refused.tun_batch,
            udp_gso: self.udp_gso && !refused.udp_gso,
            udp_gro: self.udp_gro && !refused.udp_gro,
        }
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self {
            tun_tso: true,
            tun_uso: true,
            tun_gro: true,
            tun_gro_udp: true,
            tun_batch: true,
            udp_gso: true,
            udp_gro: true,
        }
    }
}

/// How often an offload was given up, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fallbacks {
    pub tun_gro: u64,
    pub tun_gro_udp: u64,
    pub udp_gso: u64,
}

/// As `ravenvpn.dataplane.contract.Counters`, but for what is kept with each peer.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub drops: [u64; Drop::ALL.len()],
    pub fallbacks: Fallbacks,
    pub tun_rx_packets: u64,
    pub tun_tx_packets: u64,
    pub udp_rx_datagrams: u64,
    pub udp_tx_datagrams: u64,
    pub tun_reads: u64,
    pub tun_writes: u64,
    pub udp_reads: u64,
    pub udp_writes: u64,
}

impl Counters {
    pub fn drop(&mut self, why: Drop, count: usize) {
        self.drops[why as usize] += count as u64;
    }
}
