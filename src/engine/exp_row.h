// exp over a row of logits: four lanes at a time, each element the same whatever the length and place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace xgen::engine {

using FloatLanes = float __attribute__((vector_size(16)));

// exp of four z <= 0, or 0 below 2^-126. Cephes' expf: reduction by ln 2 in two parts, then a polynomial of degree 5 on
// [-ln 2 / 2, ln 2 / 2]. Relative error below 3e-7.
inline FloatLanes exp_lanes(FloatLanes z) {
  using Ints = std::int32_t __attribute__((vector_size(16)));
  constexpr float kLowest = -87.3f;
  const Ints in_range = z >= kLowest;
  const FloatLanes bounded = in_range ? z : FloatLanes{};
  // z <= 0, so that subtracting a half makes truncation round to nearest.
  const Ints power = __builtin_convertvector(bounded * 1.44269504f - 0.5f, Ints);
  const FloatLanes whole = __builtin_convertvector(power, FloatLanes);
  const FloatLanes r = bounded - whole * 0.693359375f - whole * -2.12194440e-4f;
  FloatLanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints bits = (power + 127) << 23;
  FloatLanes two_to_power;
  std::memcpy(&two_to_power, &bits, sizeof(bits));
  return in_range ? p * two_to_power : FloatLanes{};
}

// out[i] = exp((x[i] - max) * scale), as exp_lanes.
// Precondition: no x[i] is above max or NaN (-infinity is allowed); scale >= 0; out has x.size() elements.
inline void exp_row(std::span<const float> x, float max, float scale, float* out) {
  constexpr std::size_t kLanes = 4;
  std::size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    FloatLanes v;
    std::memcpy(&v, x.data() + i, sizeof(v));
    v = exp_lanes((v - max) * scale);
    std::memcpy(out + i, &v, sizeof(v));
  }
  for (; i < x.size(); ++i) out[i] = exp_lanes(FloatLanes{} + (x[i] - max) * scale)[0];
}

// In a fixed order: four partial sums, then their sum.
inline double sum_row(std::span<const float> x) {
  double sums[4] = {};
  std::size_t i = 0;
  for (; i + 4 <= x.size(); i += 4) {
    for (std::size_t l = 0; l < 4; ++l) sums[l] += static_cast<double>(x[i + l]);
  }
  for (; i < x.size(); ++i) sums[0] += static_cast<double>(x[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace xgen::engine
