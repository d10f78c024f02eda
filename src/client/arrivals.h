// Arrivals: when the requests of an open loop come, whatever becomes of those before them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "client/random.h"
#include "client/trace.h"

namespace xgen::client {

class Arrivals {
 public:
  enum class Kind : std::uint8_t { poisson, constant, trace };
  // `rate`: requests a second, above 0; of a trace: its mean is brought to it, or stays as it is (0). `trace` outlives
  // this.
  Arrivals(Kind kind, double rate, std::uint64_t seed, const std::vector<TraceRow>* trace);

  // Seconds since the begin, never less than before; nothing once a trace has ended.
  std::optional<double> next();

 private:
  const Kind kind_;
  const double rate_;
  Random random_;
  const std::vector<TraceRow>* trace_;
  double scale_ = 1;
  double at_ = 0;
  std::size_t index_ = 0;
};

}  // namespace xgen::client
