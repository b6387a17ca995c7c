//! The test rig of Weir: a small cluster out of network namespaces on one machine, and the doubles around it.
//!
//! Used by the end-to-end tests, the demo and the benchmarks. Agents under test run as real processes;
//! only [`scenario`] links their decision code.
//!
//! * [`world`]: namespaces as nodes, pods and clients, and the processes inside them.
//! * [`bench`]: ratios of Service traffic to straight traffic.
//! * [`demo`]: the objects of a running world, and the table of paths that `weir-rig demo` prints.
//! * [`deploy`]: the manifests of `deploy/`, put together and run as pods of a node.
//! * [`echo`] and [`call`]: what the process inside a namespace does (serve, call others).
//! * [`scenario`]: scenario files, and the machines that play them; [`suite`]: the test suites.
//! * [`fuzz`]: random packets through the model and the loaded programs.
//! * `tap`: a TAP device, for packets with partial checksums and packets larger than a link.
//! * [`verifier`]: what the kernel says of each program; [`vmguest`]: the init process of the other-kernel test.
//! * [`apiserver`]: an in-process double of the Kubernetes API server.

pub mod apiserver;
pub mod bench;
pub mod call;
pub mod demo;
pub mod deploy;
pub mod echo;
pub mod fuzz;
pub mod scenario;
pub mod suite;
pub(crate) mod tap;
pub mod verifier;
pub mod vmguest;
pub mod world;
