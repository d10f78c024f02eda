#include "client/arrivals.h"

namespace xgen::client {

Arrivals::Arrivals(Kind kind, double rate, std::uint64_t seed, const std::vector<TraceRow>* trace)
    : kind_(kind), rate_(rate), random_(seed, 1), trace_(trace) {
  if (kind_ == Kind::trace && rate_ > 0 && trace_->back().at > 0)
    scale_ = static_cast<double>(trace_->size() - 1) / trace_->back().at / rate_;
}

std::optional<double> Arrivals::next() {
  switch (kind_) {
    case Kind::poisson:
      return at_ += random_.exponential() / rate_;
    case Kind::constant:
      return static_cast<double>(index_++) / rate_;
    case Kind::trace:
      break;
  }
  if (index_ == trace_->size()) return std::nullopt;
  return (*trace_)[index_++].at * scale_;
}

}  // namespace xgen::client
