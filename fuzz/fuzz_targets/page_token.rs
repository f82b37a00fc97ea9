#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keyvouch::fuzzing::page_token(bytes));
