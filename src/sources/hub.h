// The Hugging Face Hub's HTTP API, as far as downloading models needs it
// (huggingface.co/docs/hub/api; huggingface_hub is the reference).
#pragma once

#include <cstddef>
#include <stop_token>
#include <string>
#include <vector>

#include "base/model_source.h"
#include "base/result.h"
#include "sources/settings.h"

namespace xgen::sources {

inline constexpr std::size_t kMaxListedFiles = 100'000;            // of one repository or prefix
inline constexpr std::size_t kMaxApiBody = std::size_t{64} << 20;  // bytes of one answer of an API

// 40 lower-case hexadecimal digits.
bool is_commit(std::string_view revision);
// "models--org--repo"
std::string hub_folder_name(const std::string& repo);

class Hub {
 public:
  // Both outlive this.
  Hub(http::Client& client, const HubSettings& settings, const Patience& patience)
      : client_(client), settings_(settings), patience_(patience) {}

  // The commit that the source's revision is now. Errors name what is missing (repository, revision) or needed (a
  // token, access): not_found, unauthenticated, permission_denied, overloaded, unavailable, cancelled.
  Result<std::string> commit(const HubSource& source, const std::stop_token& stop) const;
  // All files of the repository at a commit, with their digests. Names that would leave a folder are left out.
  Result<std::vector<RemoteFile>> list(const HubSource& source, const std::string& commit,
                                       const std::stop_token& stop) const;
  Remote remote(const HubSource& source, const std::string& commit, const RemoteFile& file) const;

 private:
  Result<http::ClientRequest> request(const std::string& target) const;
  Error explain(const HubSource& source, const std::string& file, const Answer& answer) const;

  http::Client& client_;
  const HubSettings& settings_;
  const Patience& patience_;
};

}  // namespace xgen::sources
