#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace xgen::model {
namespace {

// Long wavelengths are slowed by the factor, short ones kept, those between blended (Llama 3.1).
void scale_llama3(const RopeScaling& s, std::vector<double>& frequencies) {
  for (double& f : frequencies) {
    const double wavelength = 2 * std::numbers::pi / f;
    if (wavelength < s.original_context / s.high_freq_factor) continue;
    if (wavelength > s.original_context / s.low_freq_factor) {
      f /= s.factor;
    } else {
      const double smooth =
          (s.original_context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      f = (1 - smooth) * f / s.factor + smooth * f;
    }
  }
}

// Dimensions that turn more than beta_fast times within the original context are kept, those below beta_slow
// interpolated, with a linear ramp between (arXiv:2309.00071, section 3.2).
void scale_yarn(const RopeScaling& s, int rotary_dim, double theta, std::vector<double>& frequencies) {
  const auto dimension_of = [&](double rotations) {
    return rotary_dim * std::log(s.original_context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  double low = dimension_of(s.beta_fast);
  double high = dimension_of(s.beta_slow);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rotary_dim - 1));
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / s.factor * ramp + frequencies[i] * (1 - ramp);
  }
}

}  // namespace

double yarn_magnitude(double scale, double mscale) { return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0; }

RopeSpec make_rope(int rotary_dim, double theta, const RopeScaling& scaling) {
  RopeSpec rope{rotary_dim, std::vector<double>(static_cast<std::size_t>(rotary_dim / 2)), scaling.attention_factor};
  for (std::size_t i = 0; i < rope.frequencies.size(); ++i) {
    rope.frequencies[i] = std::pow(theta, -2.0 * static_cast<double>(i) / rotary_dim);
  }
  switch (scaling.kind) {
    case RopeScaling::Kind::none:
    case RopeScaling::Kind::longrope:
      break;
    case RopeScaling::Kind::linear:
      for (double& f : rope.frequencies) f /= scaling.factor;
      break;
    case RopeScaling::Kind::llama3:
      scale_llama3(scaling, rope.frequencies);
      break;
    case RopeScaling::Kind::yarn:
      scale_yarn(scaling, rotary_dim, theta, rope.frequencies);
      break;
  }
  for (std::size_t i = 0; i < scaling.divisors.size(); ++i) rope.frequencies[i] /= scaling.divisors[i];
  return rope;
}

void fill_rope_tables(const RopeSpec& rope, std::span<const std::int32_t> positions, float* cos, float* sin) {
  for (const std::int32_t position : positions) {
    for (const double frequency : rope.frequencies) {
      const double angle = position * frequency;
      *cos++ = static_cast<float>(std::cos(angle) * rope.attention_factor);
      *sin++ = static_cast<float>(std::sin(angle) * rope.attention_factor);
    }
  }
}

}  // namespace xgen::model
