// The download of one file: ranges of it over several connections, checked while they come.
#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>

#include "base/result.h"
#include "http/client.h"
#include "sources/caller.h"
#include "sources/file_choice.h"

namespace xgen::sources {

inline constexpr std::uint64_t kChunkBytes = std::uint64_t{16} << 20;  // one request's range

// Where one file's bytes are, and what the answers mean.
struct Remote {
  std::string name;  // "hf://org/repo/model.safetensors", for messages
  // A GET of the whole file, signed or with its token; called for every range.
  std::function<Result<http::ClientRequest>()> request;
  // Why it was refused: an error for a status that is no success, from the answer's head and the begin of its body.
  std::function<Error(const Answer&)> explain;
  // Looks at every answer's head on the way, redirects included. May be empty.
  std::function<Status(const http::ResponseHead&)> look;
};

struct TransferOptions {
  int connections = 8;
  std::uint64_t chunk = kChunkBytes;
  Patience patience;
};

// Downloads `file` to `destination` by way of `part_path`, which is taken up if it is there. The caller holds the lock.
// `progress`: bytes that are there, from the calling thread alone. Errors: what `explain` says; unavailable if the
// other side lies about length or content, is too slow or away for longer than patience lasts; a full disk; cancelled.
Status transfer(http::Client& client, const Remote& remote, const RemoteFile& file, const std::string& part_path,
                const std::string& destination, const TransferOptions& options,
                const std::function<void(std::uint64_t)>& progress, const std::stop_token& stop);

}  // namespace xgen::sources
