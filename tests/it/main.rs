//! One test binary for everything that runs processes.

#[path = "../skip.rs"]
mod skip;

mod agent;
mod agent_ends;
mod ahead;
mod attended;
mod cascade;
mod cgroups;
mod choices;
mod churn;
mod cli;
mod clone;
mod codes;
mod confined;
mod decoders;
mod demo;
mod evacuate;
mod fan;
mod fan_network;
mod files;
mod generated;
mod handover;
mod hooks;
mod hostile;
#[path = "../bench/hosts.rs"]
mod hosts;
mod leases;
mod leases_tcp;
mod leftovers;
mod lifeline;
mod lifeline_tcp;
mod manual;
mod moves;
mod named_pages;
mod networks;
mod ordinary;
mod other_end;
mod outside;
mod paths;
mod peer_user;
mod programs;
mod reader;
mod refusals;
mod relay;
mod rounds;
mod same_network;
mod sockets;
mod ssh;
mod supervisors;
mod terminals;
mod tidy;
mod traces;
mod traffic;
mod warm;
mod zoo;
