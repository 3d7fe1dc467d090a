/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Cloud endpoints that hand out credentials in clear: 169.254.169.254 (most clouds), 169.254.170.2 (ECS),
 * 169.254.170.23 (EKS pod identity), fd00:ec2::254 (EC2 IPv6), 168.63.129.16 (Azure's wire server).
 */
#ifndef XTEE_SENSITIVE_H
#define XTEE_SENSITIVE_H

static __always_inline bool sensitive4(__u32 address)
{
	return address == bpf_htonl(0xa9fea9fe) || address == bpf_htonl(0xa9feaa02) ||
	       address == bpf_htonl(0xa9feaa17) || address == bpf_htonl(0xa83f8110);
}

static __always_inline bool sensitive6(const __u32 *address)
{
	return address[0] == bpf_htonl(0xfd000ec2) && !address[1] && !address[2] && address[3] == bpf_htonl(0x254);
}

static __always_inline bool is_sensitive(const struct packet_facts *facts)
{
	if (facts->family == 4)
		return sensitive4(facts->source[0]) || sensitive4(facts->destination[0]);
	if (facts->family == 6)
		return sensitive6(facts->source) || sensitive6(facts->destination);
	return false;
}

#endif
