// IP addresses, and ranges of them, as a configuration and headers write them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace xgen {

class IpAddress {
 public:
  // "10.0.0.1", "::1" or "[::1]"; an IPv6 address of an IPv4 one (::ffff:10.0.0.1) is the same as that.
  static std::optional<IpAddress> parse(std::string_view text);
  // The same with or without a port: "10.0.0.1:80", "[::1]:80".
  static std::optional<IpAddress> parse_endpoint(std::string_view text);

  bool is_loopback() const;  // this machine
  std::string text() const;
  bool operator==(const IpAddress&) const = default;

 private:
  friend class IpRange;
  bool is_v4() const;

  std::array<std::uint8_t, 16> bytes_{};
};

class IpRange {
 public:
  // "10.0.0.0/8", "fd00::/8", or one address.
  static std::optional<IpRange> parse(std::string_view text);
  bool contains(const IpAddress& address) const;
  std::string text() const;
  bool operator==(const IpRange&) const = default;

 private:
  IpAddress first_;
  int bits_ = 128;  // that must be equal
};

}  // namespace xgen
