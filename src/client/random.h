// Random: numbers that are the same for the same seed on every machine, which the library's distributions are not.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace xgen::client {

// SplitMix64 (Steele, Lea and Flood, 2014).
class Random {
 public:
  // Different streams of one seed have nothing to do with each other.
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0) : state_(seed) { state_ = next() ^ stream; }

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // Above 0, up to 1.
  double uniform() { return static_cast<double>((next() >> 11) + 1) * 0x1p-53; }
  // 0 to n - 1.
  std::uint64_t below(std::uint64_t n) {
    return static_cast<std::uint64_t>(static_cast<double>(next() >> 11) * 0x1p-53 * static_cast<double>(n));
  }
  // Mean 1.
  double exponential() { return -std::log(uniform()); }
  // Mean 0, deviation 1 (Box and Muller, 1958).
  double normal() {
    const double radius = std::sqrt(2 * exponential());
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  std::uint64_t state_;
};

}  // namespace xgen::client
