//! Machines: what a scenario says of one ([`config`]), and the processors that give a simulated
//! machine finite caches and cycle costs ([`costs`]).

pub mod config;
