//! The counters of a body, the closed list of drop reasons, and the offloads in force.

/// Defines `Drop` and the list of its members from one list of names.
macro_rules! drops {
    ($($name:ident),* $(,)?) => {
        /// The reason for which a packet was dropped: `ravenvpn.dataplane.contract.Drop`, which documents each
        /// member. The values are the same, and stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Drop { $($name),* }

        impl Drop {
            /// Every reason, in the order of their values.
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

/// A set of offloads, `ravenvpn.offloads.Offloads` in Python: allowed, refused, or in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// The kernel hands over TCP superpackets on the TUN (TUN_F_TSO4, TUN_F_TSO6); set by the owner of the TUN.
    pub tun_tso: bool,
    /// The same for UDP (TUN_F_USO4, TUN_F_USO6, Linux 6.2).
    pub tun_uso: bool,
    /// TCP packets of one flow are coalesced into superpackets for the TUN.
    pub tun_gro: bool,
    /// The same for UDP.
    pub tun_gro_udp: bool,
    /// Several frames are written to the TUN by one system call (io_uring).
    pub tun_batch: bool,
    /// Datagrams of one size and address leave as one message (UDP_SEGMENT, Linux 4.18).
    pub udp_gso: bool,
    /// The kernel coalesces received datagrams (UDP_GRO, Linux 5.0).
    pub udp_gro: bool,
}

impl Offloads {
    /// No offload.
    pub const NONE: Self = Self {
        tun_tso: false,
        tun_uso: false,
        tun_gro: false,
        tun_gro_udp: false,
        tun_batch: false,
        udp_gso: false,
        udp_gro: false,
    };

    /// Return these offloads without those in `refused`.
    #[must_use]
    pub fn without(self, refused: Self) -> Self {
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
    /// All offloads.
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

/// How often the kernel refused an offload, which is off from then on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fallbacks {
    pub tun_gro: u64,
    pub tun_gro_udp: u64,
    pub udp_gso: u64,
}

/// The counters of a body since it was made: `ravenvpn.dataplane.contract.Counters`, without those of each peer.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Dropped packets or datagrams, indexed by the value of [`Drop`].
    pub drops: [u64; Drop::ALL.len()],
    pub fallbacks: Fallbacks,
    /// Packets read from the TUN, counted after segmentation.
    pub tun_rx_packets: u64,
    /// Packets written to the TUN, counted before coalescing.
    pub tun_tx_packets: u64,
    /// Datagrams received, each of a coalesced train counted.
    pub udp_rx_datagrams: u64,
    /// Datagrams the kernel accepted for sending, each of a batch counted.
    pub udp_tx_datagrams: u64,
    /// System calls, here and below.
    pub tun_reads: u64,
    pub tun_writes: u64,
    pub udp_reads: u64,
    pub udp_writes: u64,
}

impl Counters {
    /// Count `count` packets dropped for this reason.
    pub fn count_drop(&mut self, reason: Drop, count: usize) {
        self.drops[reason as usize] += count as u64;
    }
}
