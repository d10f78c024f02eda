// What the log says when the process crashes.
#pragma once

namespace xgen {

// To be called once, before other threads start and before models are mapped. A fatal signal (SIGSEGV, SIGBUS, SIGILL,
// SIGFPE, SIGABRT) and an exception that nobody catches then leave two lines in the log, one with the reason and one
// with the stack, as places in the program's file (addr2line -Cfe xgen-model PLACE) with the names that it knows; the
// process ends as it would without: same status, same core dump.
void log_crashes();

}  // namespace xgen
