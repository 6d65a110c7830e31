//! One test binary for everything that runs processes.

mod agent;
mod ahead;
mod churn;
mod cli;
mod confined;
mod decoders;
mod demo;
mod generated;
mod handover;
mod hostile;
mod lifeline;
mod manual;
mod moves;
mod networks;
mod programs;
mod reader;
mod refusals;
mod rounds;
mod same_network;
mod sockets;
mod ssh;
mod terminals;
mod tidy;
mod traces;
mod traffic;
mod zoo;
